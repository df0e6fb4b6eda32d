"""Units whose index carries a value are left alone, unless they are asked for; others that look alike are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.ir import RequestError


class Distribution(nn.Module):
    """The head of a detector: four distances, each the mean of a distribution over bins."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 4 * 8, 1)
        self.mean = nn.Conv2d(8, 1, 1, bias=False).requires_grad_(False)
        self.mean.weight.data = torch.arange(8.0).view(1, 8, 1, 1)
        self.register_buffer("project", torch.linspace(0, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        bins = self.head(torch.relu(self.stem(x))).flatten(2).unflatten(1, (4, 8)).softmax(2)
        if self.how == "a convolution":
            return self.mean(bins.transpose(1, 2)).squeeze(1)
        if self.how == "an einsum with a buffer":
            return torch.einsum("nkbp,b->nkp", bins, self.project)
        if self.how == "a view of a buffer":
            return (bins * self.project.view(1, 1, 8, 1)).sum(2)
        return (bins * torch.arange(8, dtype=bins.dtype).view(1, 1, 8, 1)).sum(2)


class Transform(nn.Module):
    """Points that a 3 x 3 matrix turns, which the network computes from them."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.turn = nn.Conv1d(3, 16, 1), nn.Linear(16, 9)
        self.points, self.out = nn.Conv1d(3, 12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(torch.relu(self.look(x)).amax(2)).view(-1, 3, 3) + torch.eye(3)
        turned = torch.bmm(x.transpose(1, 2), turn).transpose(1, 2)
        return self.out(torch.relu(self.points(turned)).mean(2))


class Times(nn.Module):
    """What a hidden layer holds is weighted by moments of time."""

    def __init__(self) -> None:
        super().__init__()
        self.rates, self.hidden, self.out = nn.Linear(6, 10), nn.Linear(6, 14), nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.exp(-torch.arange(10, dtype=x.dtype) / 4)
        return self.out(torch.relu(self.hidden(x))) + (torch.sigmoid(self.rates(x)) * times).sum(1, keepdim=True)


class Normalised(nn.Module):
    """A normalisation written by hand, whose buffers differ from channel to channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)
        self.register_buffer("scale", torch.rand(10) + 0.5)
        self.register_buffer("shift", torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x) * self.scale.view(1, -1) + self.shift))


class Masked(nn.Module):
    """Weights that a constant masks: no activation is multiplied with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.arange(10)[:, None] % 3 != torch.arange(6) % 3).to(x.dtype)
        return self.last(torch.relu(F.linear(x, self.first.weight * mask, self.first.bias)))


IMAGE, POINTS, ROW = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 9), torch.randn(2, 6)

ORDERED: list[tuple[Callable[[], nn.Module], Tensor, int, str]] = [
    (lambda: Distribution("a convolution"), IMAGE, 8, "mean.weight, which counts its units"),
    (lambda: Distribution("an einsum with a buffer"), IMAGE, 8, "project, which counts its units"),
    (lambda: Distribution("a view of a buffer"), IMAGE, 8, "project, which counts its units"),
    (lambda: Distribution("a constant"), IMAGE, 8, "a constant of the model's code"),
    (Transform, POINTS, 3, "an identity matrix is added"),
    (Times, ROW, 10, "a constant of the model's code"),
]


def pruned(make: Callable[[], nn.Module], example: Tensor, passes: str) -> Any:
    torch.manual_seed(0)
    return fxprune.prune_module(make().double(), example.double(), passes)


@pytest.mark.parametrize(("make", "example", "size", "reason"), ORDERED)
def test_units_that_carry_a_value_are_left_alone(
    make: Callable[[], nn.Module], example: Tensor, size: int, reason: str
) -> None:
    found = pruned(make, example, "magnitude{ratio=0.5,channels=true}")
    frozen = [said for said in found.report["magnitude"]["frozen"].values() if reason in said]
    assert frozen, found.report
    assert all("; ordered=true prunes it all the same" in said for said in frozen)
    assert size not in [group.before for group in found.groups]


@pytest.mark.parametrize(("make", "example", "size", "reason"), ORDERED)
def test_they_are_pruned_when_they_are_asked_for(
    make: Callable[[], nn.Module], example: Tensor, size: int, reason: str
) -> None:
    found = pruned(make, example, "magnitude{ratio=0.5,channels=true,ordered=true}")
    assert not any(reason in said for said in found.report["magnitude"]["frozen"].values())
    assert size in [group.before for group in found.groups]
    assert found.worst_difference < 1e-10


@pytest.mark.parametrize("make", [Normalised, Masked])
def test_units_that_a_constant_merely_differs_for_are_pruned(make: Callable[[], nn.Module]) -> None:
    found = pruned(make, ROW, "magnitude{ratio=0.5,channels=true}")
    assert [(group.before, group.after) for group in found.groups] == [(10, 5)]


def test_a_net_of_ordered_units_alone_says_why_nothing_goes() -> None:
    class Bins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return (self.first(x).softmax(1) * torch.linspace(-1, 1, 10, dtype=x.dtype)).sum(1)

    with pytest.raises(RequestError, match=r"multiplied with a constant .* ordered=true"):
        pruned(Bins, ROW, "magnitude{ratio=0.5,channels=true}")
