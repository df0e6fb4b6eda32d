"""Recurrent layers and cells in modules: removing units is zeroing them, and the module itself shrinks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.api import Pruned

TOLERANCE = 1e-10
"""float64, relative: rounding."""


def masked(dense: nn.Module, pruned: Pruned) -> nn.Module:
    """The dense module with every removed unit zero wherever it stands in a parameter or buffer."""
    zeroed = copy.deepcopy(dense)
    tensors = {**dict(zeroed.named_parameters()), **dict(zeroed.named_buffers())}
    with torch.no_grad():
        for (name, dim), kept in pruned.plan.slices.items():
            gone = np.setdiff1d(np.arange(tensors[name].shape[dim]), kept)
            tensors[name].index_fill_(dim, torch.from_numpy(gone), 0.0)
    return zeroed


def check(dense: nn.Module, example: Any, fresh: Any, passes: str = "random", **options: Any) -> Pruned:
    """Prune, and compare with the masked dense module on other inputs than the example."""
    pruned = fxprune.prune_module(dense, example, passes, **{"ratio": 0.5, **options})
    inputs = fresh if isinstance(fresh, tuple) else (fresh,)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(*inputs), masked(dense, pruned)(*inputs), rtol=TOLERANCE, atol=1e-12)
    return pruned


def sizes(pruned: Pruned) -> dict[int, int]:
    return {change.before: change.after for change in pruned.groups}


class Tagger(nn.Module):
    """Features, a recurrent layer, and a class for every step; the last states count too."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.features = nn.Linear(5, 12)
        self.layer = getattr(nn, kind)(12, 16, batch_first=True, **options)
        width = options.get("proj_size") or 16
        self.classes = nn.Linear(width * (1 + self.layer.bidirectional), 3)
        self.last = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, states = self.layer(self.features(x))
        hidden = states[0] if isinstance(states, tuple) else states
        return self.classes(steps) + self.last(hidden).sum(0).unsqueeze(1)


def tagger(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Tagger(kind, **options).double().eval()


def inputs(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYERS: list[tuple[str, Mapping[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "bidirectional": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 6, "bias": False}),
    ("GRU", {"num_layers": 2, "dropout": 0.1}),
    ("GRU", {"bidirectional": True, "bias": False}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=lambda value: str(value))
def test_a_recurrent_layer_shrinks(kind: str, options: Mapping[str, Any]) -> None:
    pruned = check(tagger(kind, **options), inputs(1, 2, 4, 5), inputs(2, 3, 6, 5))
    layer = pruned.module.layer
    assert pruned.in_place
    assert (layer.input_size, layer.hidden_size) == (6, 8)
    assert layer.proj_size == options.get("proj_size", 0) // 2
    assert pruned.macs[1] < pruned.macs[0] / 1.9
