"""lr=auto: a rate by short trainings, after which the model is what the chosen rate alone would make of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.pipeline import parse_pipeline, print_pass
from fxprune.passes.recover import kept_training
from fxprune.passes.recover.base import Recovery
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.rates import RATES, SHORT_SHARE, SHORT_STEPS, chosen, climbed, swept
from fxprune.passes.recover.training import Lessons, Recipe, Training, Validation
from fxprune.passes.registry import PASSES
from fxprune.passes.state import NoHost

from ...corpora import RunningTokens
from ...decoders import VOCABULARY, llama
from .test_distill import damaged, recover
from .test_kept_training import Keeping, broken_after, trained
from .test_lora import weights

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = RunningTokens(VOCABULARY, 24 * 12)
OPTIONS: dict[str, Any] = {
    "lr": "auto", "batch": 4, "micro_batch": 2, "length": 12, "steps": 6, "validation": 4,
}  # fmt: skip


@pytest.mark.parametrize("best", RATES)
@pytest.mark.parametrize("start", [1e-5, 1e-3, 3e-2])
def test_the_valley_is_found_from_wherever_one_begins(best: float, start: float) -> None:
    losses = climbed(lambda rate: abs(math.log(rate / best)), start)
    assert chosen(losses) == best
    tried = [RATES.index(rate) for rate in losses]
    assert max(tried) - min(tried) + 1 == len(tried), "neighbours, each once"
    assert len(losses) <= abs(RATES.index(best) - RATES.index(start)) + 3


def test_of_rates_that_are_alike_the_smallest() -> None:
    assert chosen(climbed(lambda _: math.inf, 1e-3)) == 3e-4
    assert chosen({1e-3: 1.0, 1e-4: 1.0, 1e-2: 2.0}) == 1e-4


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("kind", [Finetune, Lora, Distill])
def test_what_the_sweep_did_is_not_seen_in_the_weights(kind: type[Recovery]) -> None:
    """The same bits as with the chosen rate given; dropout and the order of the examples too."""
    model, other, dense = damaged(llama()), damaged(llama()), llama()
    report = recover(kind(**OPTIONS), model, dense, TEXT)
    rates = {rate: loss for rate, loss in report["rates"]}
    assert kind.first_rate in rates
    assert len(rates) >= 2
    rate = chosen({rate: math.inf if loss is None else loss for rate, loss in rates.items()})
    alone = recover(kind(**OPTIONS | {"lr": rate}), other, dense, TEXT)
    assert "rates" not in alone
    assert alone["loss"] == report["loss"]
    assert alone["validation"] == report["validation"]
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(model).items())


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("after", [1, 4])
def test_a_training_that_goes_on_does_not_search_again(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_training, "SHARE", 0)
    step = Finetune(**OPTIONS | {"batch": 2, "micro_batch": 1, "validation": 2})
    whole, report = trained(step, NoHost())
    host = Keeping(tmp_path / "kept")
    broken_after(after, step, host)
    monkeypatch.setattr("fxprune.passes.recover.trainer.swept", None)
    got, again = trained(step, host)
    assert again["rates"] == report["rates"]
    assert again["loss"] == report["loss"]
    assert all(torch.equal(got[name], tensor) for name, tensor in whole.items())


class Counted(nn.Module):
    """Two weights, one of which is trained, and a buffer that counts."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def recipe(**given: Any) -> Recipe:
    common: dict[str, Any] = {
        "epochs": 1, "steps": 0, "lr": 1e-3, "warmup": 0, "batch": 2, "micro_batch": 2, "bfloat16": False,
        "checkpointing": False, "seed": 0, "validation": 4, "sweep": True,
    }  # fmt: skip
    return Recipe(**common | given)


def failing_above(rate: float) -> Callable[[nn.Module, Lessons, Recipe], Training]:
    """A training that changes all that it may, and fails with larger rates."""

    def train(model: nn.Module, lessons: Lessons, recipe: Recipe) -> Training:
        del lessons
        assert isinstance(model, Counted)
        assert (recipe.sweep, recipe.measured) == (False, 1)
        with torch.no_grad():
            assert model.weight.tolist() == [1, 1]
            model.weight.fill_(torch.nan)
            model.seen += recipe.steps
        if recipe.lr > rate:
            raise FxpruneError("the loss is nan", "lower lr")
        return Training(validation=Validation(4, {0: 9.0, recipe.steps: 1 / recipe.lr}))

    return train


@pytest.mark.parametrize(("examples", "steps"), [(4 + 8, 4), (4 + 2 * 50 * SHORT_SHARE, 50), (4 + 2, 1)])
def test_the_model_is_as_before(examples: int, steps: int) -> None:
    """After trainings that fail, too; short ones take a share of the steps, or a few."""
    model, lengths = Counted(), []
    train = failing_above(3e-3)

    def counting(model: nn.Module, lessons: Lessons, recipe: Recipe) -> Training:
        lengths.append(recipe.steps)
        return train(model, lessons, recipe)

    losses = swept(counting, model, Lessons([{}] * examples, dict), recipe())
    assert losses == {1e-3: 1000.0, 3e-3: pytest.approx(1 / 3e-3), 1e-2: math.inf}
    assert model.weight.tolist() == [1, 1]
    assert model.seen == 0
    assert set(lengths) == {steps}
    assert steps in (1, SHORT_STEPS, 50)


def test_auto_is_written_and_read() -> None:
    (step,) = parse_pipeline("lora{lr=auto,validation=8}", PASSES)
    assert print_pass(step) == "lora{lr=auto,validation=8}"


@pytest.mark.parametrize(
    ("step", "message", "hint"),
    [
        (Lora(lr="auto"), "lora: lr=auto has no held-out examples to choose by", "give validation=32, say, too"),
        (Finetune(lr="fast"), "finetune: lr=fast is not supported", "give a number, or auto"),  # type: ignore[arg-type]
        (
            Distill(lr="auto", validation=4, blocks=2),
            "distill: lr=auto is for the whole model, and blocks are trained before it",
            "give lr, or leave blocks out",
        ),
    ],
)
def test_errors(step: Recovery, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        step.check()
    assert (caught.value.message, caught.value.hint) == (message, hint)
