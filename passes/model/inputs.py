"""Samples of a data set as batches without padding, so that filling can change no score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...runtime.model.keywords import caching
from ...runtime.ranks import ALONE, Ranks
from ...runtime.streaming.turns import Feed
from ..data import Inputs, InputSet


def batches_of(
    inputs: InputSet, *, samples: int, length: int, seed: int | None, batch: int, ranks: Ranks = ALONE
) -> list[Inputs]:
    """Batches of samples with the same shapes; those of this rank.

    Args:
        inputs: the data set.
        samples, length, seed: which samples.
        batch: the most samples in one forward pass.
        ranks: who shares them.

    Raises:
        RequestError: there are fewer samples.
    """
    return list(ranks.share(_batches(inputs, inputs.rows(length, samples, seed), batch), "calibration batches"))


def _batches(inputs: InputSet, rows: Sequence[Inputs], batch: int) -> list[Inputs]:
    alike: dict[Any, list[Inputs]] = {}
    full: list[list[Inputs]] = []
    for row in rows:
        key = tuple((name, value.shape if isinstance(value, Tensor) else repr(value)) for name, value in row.items())
        group = alike.setdefault(key, [])
        if not group:
            full.append(group)
        group.append(row)
        if len(group) == (batch if inputs.divided else 1):
            del alike[key]
    return [inputs.join(group) for group in full]


def called_with(batch: Inputs) -> Feed:
    """What runs a model on a batch, and gives its output."""

    def run(model: nn.Module) -> Any:
        return model(**moved(batch, model), **caching(model, False))

    return run


def moved(batch: Inputs, model: nn.Module) -> dict[str, Any]:
    """A batch where a model computes, its numbers in the model's precision where that is another than float32."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return dict(batch)
    found = {name: value.to(parameter.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return {
        name: value.to(parameter.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in found.items()
    }
