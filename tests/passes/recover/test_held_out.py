"""validation=N: examples are held out, and the weights with the smallest loss on them are what a training leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxprune.ir.errors import RequestError
from fxprune.passes.model.measure import perplexity
from fxprune.passes.recover import kept_training
from fxprune.passes.recover.base import Recovery
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.training import Validation
from fxprune.passes.state import NoHost

from ...corpora import RandomTokens, RunningTokens, UnequalRows
from ...decoders import VOCABULARY, llama
from .test_distill import damaged, recover
from .test_kept_training import Keeping, broken_after, trained
from .test_lora import weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _every_step_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_training, "SHARE", 0)


WINDOWS = 32
TEXT = RunningTokens(VOCABULARY, WINDOWS * 12)
OPTIONS: dict[str, Any] = {"lr": 0.01, "batch": 4, "micro_batch": 2, "length": 12, "steps": 8, "validation": 4}
HELD = [4, 12, 20, 28]
"""Which of the windows are held out: in the middle of each quarter."""


class Fixed:
    """A text that is cut into windows already."""

    name = "noise"

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> Tensor:
        del length, count, seed
        return self.rows


def loss_on(model: Any, places: list[int]) -> float:
    ids = TEXT.windows(12)[places]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return float(functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("step", [Finetune(**OPTIONS), Lora(**OPTIONS), Distill(**OPTIONS | {"lr": 0.001}, top_k=4)])
def test_what_is_held_out_is_not_trained_on(step: Recovery) -> None:
    """Where the last weights are the best, a training on the other windows alone ends with the same bits."""
    model, other, dense = damaged(llama()), damaged(llama()), llama()
    report = recover(step, model, dense, TEXT)
    validation = report["validation"]
    assert validation["examples"] == 4
    assert [measured for measured, _ in validation["losses"]] == list(range(9))
    assert validation["kept"] == 8
    assert "remarks" not in report
    rest = Fixed(TEXT.windows(12)[[place for place in range(WINDOWS) if place not in HELD]])
    alone = recover(type(step)(**{**vars(step), "validation": 0}), other, dense, rest)
    assert alone["loss"] == report["loss"]
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(model).items())


def test_the_losses_are_those_of_the_held_out_windows() -> None:
    model = llama()
    before = loss_on(model, HELD)
    losses = dict(recover(Finetune(**OPTIONS), model, None, TEXT)["validation"]["losses"])
    assert losses[0] == pytest.approx(before, rel=1e-5)
    assert losses[8] == pytest.approx(loss_on(model, HELD), rel=1e-5)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("step", [Finetune, Lora, Distill])
def test_a_training_that_only_harms_changes_nothing(step: type[Recovery]) -> None:
    """With a learning rate that destroys the model; the loss before is the smallest."""
    dense = llama()
    model = damaged(dense) if step is Distill else llama()
    recover(Finetune(**OPTIONS | {"lr": 0.02, "steps": 60, "validation": 0}), model, None, TEXT)
    before = weights(model)
    report = recover(step(**OPTIONS | {"lr": 3.0}), model, model if step is Distill else dense, TEXT)
    assert report["validation"]["kept"] == 0
    (remark,) = report["remarks"]
    assert remark.startswith("the weights after step 0 are kept: their loss is ")
    assert "lower lr" in remark
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_the_best_weights_on_the_way_are_kept() -> None:
    """Random tokens: a model first learns that all are alike, then learns its windows by heart."""
    model, noise = llama(), RandomTokens(VOCABULARY)
    windows = noise.windows(12, 16)
    held = windows[[2, 6, 10, 14]]
    step = Finetune(**OPTIONS | {"lr": 0.01, "steps": 64})
    report = recover(step, model, None, Fixed(windows))
    losses, kept = dict(report["validation"]["losses"]), report["validation"]["kept"]
    assert 0 < kept < 64, losses
    assert losses[kept] == min(losses.values()) < losses[64] - 0.1
    assert perplexity(model, held).nll == pytest.approx(losses[kept], rel=1e-5)
    assert "lower lr" not in report["remarks"][0]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("after", [1, 3, 6])
@pytest.mark.parametrize("lr", [0.01, 0.3])
def test_a_training_that_goes_on_remembers_the_best(after: int, lr: float, tmp_path: Path) -> None:
    step = Finetune(**OPTIONS | {"steps": 7, "batch": 2, "micro_batch": 1, "validation": 2, "lr": lr})
    whole, report = trained(step, NoHost())
    host = Keeping(tmp_path / "kept")
    broken_after(after, step, host)
    got, again = trained(step, host)
    assert again["validation"] == report["validation"]
    assert all(torch.equal(got[name], tensor) for name, tensor in whole.items())


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(RequestError, match="validation=8 leaves nothing to train on: the data has 8 examples"):
        recover(Lora(**OPTIONS | {"validation": 8}), llama(), None, UnequalRows())


def test_a_loss_that_is_not_finite_is_not_the_best() -> None:
    found = Validation(3, {0: 2.0, 4: float("nan"), 8: 1.5, 12: float("inf"), 16: 1.5})
    assert found.kept == 8
    assert "step 8 are kept: their loss is 1.5000 against 1.5000 after step 16" in found.remarks[0]
    assert Validation(3, {0: float("nan")}).kept == 0
