"""Examples that are held out of a training, to keep the weights with which the loss on them is smallest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...ir.errors import RequestError
from ...runtime.model.training_rows import IGNORED
from .kept_training import TrainingState, trained_parameters
from .training import Lessons, Recipe, Validation, preserved_randomness


def divided(lessons: Lessons, recipe: Recipe) -> tuple[Lessons, Sequence[Any]]:
    """The lessons without what is held out, and that: examples at equal distances, so that they are of all parts.

    Raises:
        RequestError: when nothing would be left to train on.
    """
    count, whole = recipe.validation, len(lessons.examples)
    if not count:
        return lessons, []
    if count >= whole:
        raise RequestError(
            f"validation={count} leaves nothing to train on: the data has {whole} examples",
            "hold out fewer, about a twentieth of them; or give more data",
        )
    places = {int((i + 0.5) * whole / count) for i in range(count)}
    rest = [place for place in range(whole) if place not in places]
    return dataclasses.replace(lessons, examples=_some(lessons, rest)), _some(lessons, sorted(places))


def _some(lessons: Lessons, places: list[int]) -> Sequence[Any]:
    """Examples at some places; those of a data set of inputs are read when they are needed."""
    examples: Any = lessons.examples
    some: Any = Subset(examples, places)
    return some


class BestWeights(TrainerCallback):
    """Measures the loss on held-out examples before, during and after a training; at the end, the weights with the
    smallest loss are in the model.

    Args:
        examples: what is held out.
        lessons: puts examples together, and knows whether they are text.
        at_once: examples in one forward pass.
        times: how often it measures during the training, besides before it.
        begun: the state from which the training goes on.
    """

    def __init__(
        self, examples: Sequence[Any], lessons: Lessons, at_once: int, times: int, begun: TrainingState | None
    ) -> None:
        self.trainer: Trainer | None = None
        self.validation = Validation(len(examples))
        self._examples, self._at_once, self._times = examples, at_once, times
        self._join, self._text = lessons.join, lessons.text
        self._best: dict[str, Tensor] = {}
        if begun is not None:
            self._best, losses = begun.best_weights(), begun.validation
            self.validation.losses.update((int(step), float(loss)) for step, loss in losses)

    @property
    def state(self) -> tuple[dict[str, Tensor], list[tuple[int, float]]]:
        """The best weights so far by name, and the loss after every step at which it was measured."""
        return self._best, list(self.validation.losses.items())

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **event: Any
    ) -> None:
        """Measure what the training must not make worse."""
        if not self.validation.losses:
            self._measure(event["model"], 0)

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **event: Any
    ) -> None:
        """Measure now and then, and after the last step."""
        every = max(1, state.max_steps // self._times)
        if state.global_step % every == 0 or state.global_step >= state.max_steps:
            self._measure(event["model"], state.global_step)

    def on_train_end(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **event: Any
    ) -> None:
        """Put the best weights into the model."""
        with torch.no_grad():
            for name, parameter in trained_parameters(event["model"]):
                if name in self._best:
                    parameter.copy_(self._best[name])

    def _measure(self, model: nn.Module, step: int) -> None:
        losses, before = self.validation.losses, self.validation.kept
        losses[step] = self._loss(model)
        if self.validation.kept == step != before or not self._best:
            self._best = {name: value.detach().clone() for name, value in trained_parameters(model)}

    def _loss(self, model: nn.Module) -> float:
        assert self.trainer is not None, "set before the training"
        total, count = 0.0, 0
        with torch.no_grad(), preserved_randomness(), _answering(model):
            for start in range(0, len(self._examples), self._at_once):
                end = min(start + self._at_once, len(self._examples))
                examples = [self._examples[place] for place in range(start, end)]
                batch = dict(self._join(examples))
                counted = int((batch["labels"][:, 1:] != IGNORED).sum()) if self._text else len(examples)
                if not counted:
                    continue
                with self.trainer.compute_loss_context_manager():
                    loss: Any = self.trainer.compute_loss(model, self._prepared(batch))
                total, count = total + float(loss) * counted, count + counted
        return total / count if count else math.nan

    def _prepared(self, batch: dict[str, Any]) -> dict[str, Any]:
        prepare: Callable[..., dict[str, Any]] = self.trainer._prepare_inputs  # type: ignore[union-attr]
        return prepare(batch)


@contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards every module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag
