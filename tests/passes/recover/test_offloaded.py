"""Recovery of models whose weights wait in files or in the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import api
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.recover import training
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.memory import TRAINED_COPIES, Holder, training_memory
from fxprune.passes.recover.training_run import TrainingRun

from ...checkpoints import LLAMA, TIED, contents, write_checkpoint
from ...corpora import word_tokenizer
from ...decoders import llama

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}
TEXT = " ".join(list(WORDS)[i * i % 26] for i in range(400))
STEPS = "{steps=2,batch=4,micro_batch=2,length=8,lr=0.01}"


def write_source(folder: Path, config: Any = LLAMA, dtype: torch.dtype = torch.float32) -> Path:
    source = write_checkpoint(folder, config, dtype=dtype)
    word_tokenizer(WORDS).save_pretrained(source)
    (folder.parent / "text.txt").write_text(TEXT)
    return source


def applied(source: Path, passes: str, out: str, **options: Any) -> dict[str, str]:
    text = source.parent / "text.txt"
    data = text if any(name in passes for name in ("lora", "finetune", "distill")) else None
    api.apply(source, passes, ratio=0.5, out=source.parent / out, calib=text, data=data, device="cpu", **options)
    return contents(source.parent / out)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("passes", "config", "dtype"),
    [
        (f"taylor{{samples=4,length=8}},lora{STEPS}", LLAMA, torch.float32),
        (f"wanda{{samples=4,length=8}},finetune{STEPS}", TIED, torch.bfloat16),
    ],
)
def test_the_same_files_wherever_weights_wait(passes: str, config: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", config, dtype)
    whole = applied(source, passes, "none", offload="none")
    assert whole == applied(source, passes, "memory", offload="memory")
    assert whole == applied(source, passes, "disk", offload="disk")
    assert whole["model.safetensors"] != applied(source, passes.rpartition("},")[0] + "}", "cut")["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_failure_writes_nothing_to_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_source(tmp_path / "source")
    before = contents(source)
    seen: list[Any] = []

    def fails(model: Any, *_: Any) -> None:
        seen.append(model)
        with torch.no_grad():
            model.lm_head.weight.zero_()
        raise FxpruneError("the loss is not finite")

    monkeypatch.setattr(training, "require_finite", fails)
    with pytest.raises(FxpruneError, match="not finite"):
        applied(source, f"magnitude,finetune{STEPS}", "out", offload="memory")
    (model,) = seen
    assert all(parameter.is_meta for parameter in model.parameters())
    assert contents(source) == before, "the mapped files were not written to"


def test_what_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    with pytest.raises(RequestError, match=r"finetune trains with all weights in memory: .* more than the 90\.0 kB"):
        applied(source, f"magnitude,finetune{STEPS}", "out", offload="disk", max_memory="90kB")
    assert not (tmp_path / "out").exists()


def test_memory_is_counted() -> None:
    model = llama(tied=True)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    lora = sum(2 * sum(p.shape) for name, p in model.named_parameters() if "proj" in name)
    for step, trained in ((Finetune(), numbers), (Lora(r=2), lora)):
        assert step.trained(model) == trained
        found = TrainingRun(step, Holder(torch.device("cpu"), torch.float16)).memory(model.half())
        assert found.weights == 4 * numbers, "half precision is widened"
        assert found.optimizer == TRAINED_COPIES * 4 * trained
    one, two, kept = (
        training_memory(model, dtype=torch.float32, trained=0, batch=batch, length=8, checkpointing=checkpointing)
        for batch, checkpointing in ((1, True), (2, True), (1, False))
    )
    assert (two.activations, two.blocks, two.logits) == (2 * one.activations, 2 * one.blocks, 2 * one.logits)
    assert one.least < one.usual
    assert one.blocks == 2 * one.activations
    assert kept.least == one.usual
