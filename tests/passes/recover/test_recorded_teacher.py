"""A teacher whose predictions are computed once and kept in files."""

from __future__ import annotations

import copy
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.recorded_teacher import Answers, RecordedTeacher
from fxprune.passes.recover.teacher import IGNORED, PresentTeacher
from fxprune.passes.recover.training import Example, pad
from fxprune.runtime.streaming.block_runner import BlockRunner

from ...checkpoints import contents
from ...corpora import RepeatedTokens, UnequalRows
from ...decoders import VOCABULARY, llama
from .test_distill import OPTIONS, damaged, divergence, recover
from .test_lora import weights
from .test_offloaded import applied, write_source

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ROWS: list[Example] = [
    {"input_ids": [1, 2, 3, 4, 5], "labels": [1, IGNORED, 3, 4, 5]},
    {"input_ids": [5, 6, 7], "labels": [5, 6, 7]},
    {"input_ids": [8, 9], "labels": [8, IGNORED]},
]


def random_logits(seed: int, rows: int = 6, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, 11, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3])
def test_the_distance_is_the_one_of_distributions_with_the_rest_as_one_token(k: int) -> None:
    dense, student = random_logits(0), random_logits(1)
    found = Answers.of(dense, k).distance(student)
    expected = 0.0
    for p, q in zip(dense.double().softmax(-1), student.double().softmax(-1), strict=True):
        top = p.argsort(descending=True)
        kept, rest = top[:k], top[k:]
        merged = [(p[at], q[at]) for at in kept] + [(p[rest].sum(), q[rest].sum())]
        expected += sum(float(a * (a / b).log()) for a, b in merged)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    whole = Answers.of(dense, 0)
    assert whole.tokens is None
    assert Answers.of(dense, 11).tokens is None
    assert found < whole.distance(student), "what is told apart less is never farther apart"


def test_a_teacher_that_is_certain_has_a_finite_distance_and_gradient() -> None:
    student = random_logits(1).requires_grad_()
    loss = Answers.of(random_logits(0, scale=3e4), 2).distance(student)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_files_give_the_loss_of_a_teacher_that_is_there(temperature: float, tmp_path: Path) -> None:
    dense, student = llama(), damaged(llama())
    recorded = RecordedTeacher(0.25, temperature, 0, tmp_path)
    recorded.keep_predictions(BlockRunner(dense), ROWS, batch=2, device=CPU, bfloat16=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.safetensors", "000001.safetensors"]
    present = PresentTeacher(dense, 0.25, temperature)
    for some in ([2, 0], [1], [0, 1, 2], [2]):
        batch = pad([ROWS[at] for at in some])
        with torch.no_grad():
            out = student(batch["input_ids"], attention_mask=batch["attention_mask"])
        losses = []
        for teacher in (recorded, present):
            teacher.answer(batch)
            losses.append(teacher.loss(out, batch["labels"], 4).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=1e-9)


def test_learning_from_files_is_learning_from_the_teacher() -> None:
    dense, models = llama(), []
    for top_k in (0, VOCABULARY):
        models.append(damaged(dense))
        report = recover(Distill(**OPTIONS | {"top_k": top_k, "steps": 3}), models[-1], dense, UnequalRows())
    assert report["teacher_mass"] == pytest.approx(1)
    for name, tensor in weights(models[0]).items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [Distill(**OPTIONS, top_k=4), Lora(**OPTIONS, teacher=1.0, top_k=4)])
def test_a_few_tokens_of_each_prediction_are_enough_to_learn(
    step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dense = llama()
    model = damaged(dense)
    before = divergence(model, dense)
    report = recover(step, model, dense)
    assert divergence(model, dense) < 0.8 * before
    ids = torch.arange(12)[None] % VOCABULARY
    with torch.no_grad():
        mass = dense(ids).logits.softmax(-1).topk(4).values.sum(-1).mean()
    assert report["teacher_mass"] == pytest.approx(float(mass), abs=0.1)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_predictions_are_recorded_in_float32() -> None:
    dense = llama().half()
    model = damaged(dense)
    before = divergence(copy.deepcopy(model).float(), copy.deepcopy(dense).float())
    recover(Distill(**OPTIONS, top_k=8), model, dense)
    assert {t.dtype for m in (model, dense) for t in m.state_dict().values()} == {torch.float16}
    assert divergence(model.float(), dense.float()) < 0.8 * before


def test_bfloat16_arithmetic_reaches_the_recording_too(tmp_path: Path) -> None:
    plain, coarse = RecordedTeacher(1, 1, 0, tmp_path / "a"), RecordedTeacher(1, 1, 0, tmp_path / "b")
    found = []
    for teacher in (plain, coarse):
        teacher.folder.mkdir()
        teacher.keep_predictions(BlockRunner(llama()), ROWS, batch=4, device=CPU, bfloat16=teacher is coarse)
        teacher.answer(pad(ROWS))
        found.append(torch.cat([one.log_probs for one in teacher._answers]))
    assert 0 < (found[0] - found[1]).abs().max() < 0.1


STEPS = "steps=2,batch=4,micro_batch=2,length=8,lr=0.01"


@pytest.mark.wide
def test_a_teacher_whose_weights_wait_elsewhere_teaches_the_same(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    passes = f"magnitude,lora{{{STEPS},teacher=0.5,top_k=8}},distill{{{STEPS},top_k=8,blocks=1}}"
    whole = applied(source, passes, "none", offload="none")
    assert whole == applied(source, passes, "disk", offload="disk")
    assert contents(tmp_path / "none") == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(RequestError, match=r"predictions for 5 tokens take .* has 1\.0 kB") as caught:
        RecordedTeacher(1, 1, 30, tmp_path).keep_predictions(
            BlockRunner(llama()), ROWS, batch=2, device=CPU, bfloat16=False
        )
    assert "top_k" in caught.value.hint
    RecordedTeacher(1, 1, 8, tmp_path).keep_predictions(BlockRunner(llama()), ROWS, batch=2, device=CPU, bfloat16=False)


def test_predictions_that_are_not_finite_are_an_error() -> None:
    dense = llama()
    with torch.no_grad():
        dense.model.norm.weight[0] = torch.nan
    with pytest.raises(FxpruneError, match="predictions are not finite"):
        recover(Distill(**OPTIONS, top_k=2), llama(), dense, RepeatedTokens())
