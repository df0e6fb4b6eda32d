"""Modules that write into slices of their tensors: the returned graph computes the same, and trains the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Writing(nn.Module):
    """It writes into a part of what a layer gives; which part is written in its code."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        y = self.second(h) * 1
        if self.how == "a slice":
            y[:, :16] = y[:, 16:] * 2
        elif self.how == "zeros":
            y, read = y.new_zeros(x.shape[0], 32), y
            y[:, :16], y[:, 16:] = h, read[:, :16]
        elif self.how == "in place":
            y[:, :16] += h
        elif self.how == "every other":
            y[:, ::2].copy_(h)
        elif self.how == "one value":
            y[:, 3] = 2.0
        return self.third(torch.relu(y).reshape(-1, 32))


@pytest.mark.parametrize("how", ["a slice", "zeros", "in place", "every other", "one value"])
def test_the_graph_gives_and_learns_what_the_module_does_without_the_units(how: str) -> None:
    net = Writing(how).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    found = fxprune.prune_module(net, x, "magnitude{ratio=0.5,channels=true}")
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for (name, dim), kept in found.plan.slices.items():
            gone = [unit for unit in range(net.get_parameter(name).shape[dim]) if unit not in set(kept.tolist())]
            masked.get_parameter(name).index_fill_(dim, torch.tensor(gone), 0)
    expected, got = masked(x), found.module(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    expected.square().sum().backward()
    got.square().sum().backward()
    for name, parameter in found.module.named_parameters():
        wanted = masked.get_parameter(name).grad
        for dim in range(parameter.dim()):
            kept = found.plan.slices.get((name, dim))
            wanted = wanted if kept is None else wanted.index_select(dim, torch.from_numpy(kept))
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-12, atol=1e-14)
