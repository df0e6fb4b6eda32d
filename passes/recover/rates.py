"""The learning rate by a sweep: short trainings from the same weights, each judged on what is held out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn

from ...ir.errors import FxpruneError
from .kept_training import trained_parameters
from .training import Lessons, Recipe, Training

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""What is tried, in order. The loss after a training is taken to have one valley over them (docs/quality.md)."""

SHARE = 20
"""A short training has one part of so many of the steps, ..."""
FEWEST = 4
"""... but no fewer than these."""

Train = Callable[[nn.Module, Lessons, Recipe], Training]
"""Trains a model in place."""


def swept(train: Train, model: nn.Module, lessons: Lessons, recipe: Recipe) -> dict[float, float]:
    """Rate -> the loss on held-out examples after a short training with it, in the order in which they were tried.

    From ``recipe.lr`` on, larger rates are tried until the loss grows; if the first of them is worse already, smaller
    ones. The model is afterwards as it was.

    Args:
        train: a training, which keeps no state.
        model, lessons: what is trained, on what.
        recipe: of the whole training; its rate is one of RATES, where the sweep begins.
    """
    whole = recipe.total(len(lessons.examples) - recipe.validation)
    steps = min(whole, max(FEWEST, whole // SHARE))
    short = dataclasses.replace(recipe, steps=steps, measured=1, sweep=False)
    before = {name: tensor.detach().clone() for name, tensor in _changed(model)}

    def loss(rate: float) -> float:
        try:
            found = train(model, lessons, dataclasses.replace(short, lr=rate)).validation
        except FxpruneError:  # a loss or gradient that is not finite
            return math.inf
        finally:
            _put_back(model, before)
        assert found is not None, "check asks for held-out examples"
        after = found.losses.get(steps, math.inf)
        return after if math.isfinite(after) else math.inf

    return climbed(loss, recipe.lr)


def climbed(loss: Callable[[float], float], start: float) -> dict[float, float]:
    """Rate -> its loss, of those that :func:`swept` tries.

    Args:
        loss: of a rate.
        start: one of RATES.
    """
    place = RATES.index(start)
    found = {start: loss(start)}
    for direction in (1, -1):
        at = place + direction
        while 0 <= at < len(RATES):
            found[RATES[at]] = loss(RATES[at])
            if not found[RATES[at]] < found[RATES[at - direction]]:
                break
            at += direction
        if chosen(found) != start:
            break
    return found


def chosen(losses: dict[float, float]) -> float:
    """The rate with the smallest loss; the smaller of several."""
    return min(losses, key=lambda rate: (losses[rate], rate))


def _changed(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What a training changes: the parameters that it trains, and buffers such as running means."""
    return [*trained_parameters(model), *model.named_buffers()]


def _put_back(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _changed(model):
            tensor.copy_(values[name])
