"""A ratio is a share of a width, also where the width is a product: groups of a convolution times channels of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Grouped(nn.Module):
    """Grouped convolutions one after the other, between plain ones."""

    def __init__(self, *layers: tuple[int, int, int], norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, layers[0][0], 1)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, padding=1, groups=g), nn.BatchNorm2d(o) if norm else nn.Identity())
                for i, o, g in layers
            )
        )
        self.last = nn.Conv2d(layers[-1][1], 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.layers(torch.relu(self.stem(x)))))


def pruned(net: nn.Module, passes: str) -> Any:
    torch.manual_seed(0)
    return fxprune.prune_module(net.double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64), passes)


@pytest.mark.parametrize(
    "layers",
    [
        ((32, 32, 8),),  # eight groups of four
        ((32, 32, 4),),  # four groups of eight
        ((32, 64, 4),),  # more channels out than in
        ((32, 32, 8), (32, 32, 8)),
        ((32, 32, 8), (32, 32, 4)),  # groups within groups
        ((32, 32, 4), (32, 32, 1), (32, 48, 4)),
    ],
)
def test_half_of_every_width_is_left(layers: tuple[tuple[int, int, int], ...]) -> None:
    found = pruned(Grouped(*layers), "magnitude{ratio=0.5,channels=true}")
    module = found.module
    assert module.get_parameter("stem.weight").shape[0] == layers[0][0] // 2
    for number, (_, outputs, _) in enumerate(layers):
        assert module.get_parameter(f"layers.{number}.0.weight").shape[0] == outputs // 2
    assert module.get_parameter("last.weight").shape[1] == layers[-1][1] // 2
    assert found.worst_difference < 1e-10


def test_with_a_batch_norm_behind_it() -> None:
    found = pruned(Grouped((32, 32, 8), norm=True), "magnitude{ratio=0.25,channels=true}")
    assert found.module.get_buffer("layers.0.1.running_mean").shape == (24,)
