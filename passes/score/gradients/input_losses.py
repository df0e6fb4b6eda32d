"""Losses on samples of inputs: the model's own where they have labels, else one that needs none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ....ir import FxpruneError
from ....runtime.model.training_rows import IGNORED
from ...data import Inputs, InputSet
from ...model.answers import answer_of, own_loss
from ...model.inputs import called_with

BatchLoss = Callable[[nn.Module], tuple[Tensor, int]]
"""Takes a module; returns the loss summed over predictions, and the number of predictions."""


def losses_on(inputs: InputSet, batches: Sequence[Inputs], keys: Sequence[str] = ()) -> list[BatchLoss]:
    """One loss for every batch.

    Args:
        inputs: the data set.
        batches: of its samples.
        keys: outputs of the model that count, for a loss without labels.
    """
    if inputs.labelled:
        return [_labelled(batch) for batch in batches]
    return [_unlabelled(batch, number, keys) for number, batch in enumerate(batches)]


def mean_of(loss: BatchLoss) -> Callable[[nn.Module], Tensor]:
    """The loss of one prediction, on average."""

    def mean(model: nn.Module) -> Tensor:
        total, count = loss(model)
        return total / count

    return mean


def _labelled(batch: Inputs) -> BatchLoss:
    def loss(model: nn.Module) -> tuple[Tensor, int]:
        output = called_with(batch)(model)
        found = output.get("loss") if hasattr(output, "get") else None
        if found is None:
            raise FxpruneError(
                f"{type(model).__name__} returned no loss for labels", "leave the labels out of the data set"
            )
        labels = batch["labels"]
        count = int((labels != IGNORED).sum()) if labels.dim() > 1 and not labels.is_floating_point() else len(labels)
        return found * max(1, count), max(1, count)

    return loss


def _unlabelled(batch: Inputs, number: int, keys: Sequence[str]) -> BatchLoss:
    def loss(model: nn.Module) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(number)
        return own_loss(answer_of(called_with(batch)(model), batch, keys), generator)

    return loss
