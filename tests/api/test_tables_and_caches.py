"""What a module keeps beside its parameters: tables that it adds, and what its forward stores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.runtime.tolerances import relative_difference

from ..equivalence import TOLERANCE, masked


class Positions(nn.Module):
    """Adds the middle of a table of four by four positions to patches."""

    def __init__(self, *, persistent: bool = True, times: int = 1) -> None:
        super().__init__()
        self.first, self.second, self.times = nn.Conv2d(3, 8, 1), nn.Linear(8, 5), times
        self.register_buffer("table", torch.randn(1, 16, 8), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).flatten(2).transpose(1, 2)
        for _ in range(self.times):
            places = self.table.reshape(1, 4, 4, -1)[:, 1:3, 1:3].reshape(1, 4, -1)
            y = torch.relu(y + places)
        return self.second(y).sum(1)


def positions(**options: bool | int) -> Positions:
    torch.manual_seed(0)
    return Positions(**options).double().eval()  # type: ignore[arg-type]


def test_a_stored_table_is_sliced_in_the_module() -> None:
    dense, x = positions(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    pruned = fxprune.prune_module(dense, x, "random", ratio=0.5)
    assert pruned.in_place, pruned.rebuilt_because
    assert pruned.module.table.shape == (1, 16, 4)
    with torch.no_grad():
        assert relative_difference(pruned.module(x), masked(dense, pruned.plan)(x)) <= TOLERANCE


@pytest.mark.parametrize("options", [{"persistent": False}, {"times": 2}])
def test_other_tables_stay_constants_of_a_graph(options: dict[str, bool | int]) -> None:
    dense, x = positions(**options), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    pruned = fxprune.prune_module(dense, x, "random", ratio=0.5)
    assert not any(name == "table" for name, _ in pruned.plan.slices)
    (kept,) = pruned.plan.keep.values()
    smaller = masked(dense, pruned.plan)
    gone = [unit for unit in range(8) if unit not in kept]
    smaller.table[..., gone] = 0
    with torch.no_grad():
        assert relative_difference(pruned.module(x), smaller(x)) <= TOLERANCE


class Cached(nn.Module):
    """Keeps what it computed of a parameter, until it changes its mode, as attention with a table of biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.scales = nn.Parameter(torch.randn(8, 4))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Cached:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if "sum" not in self.cache:
            self.cache["sum"] = self.scales[:, [0, 2]].sum(1)
        return self.second(torch.relu(self.first(x)) * self.cache["sum"])


@pytest.mark.parametrize("ran_before", [False, True])
def test_what_a_forward_caches_does_not_hide_its_parameter(ran_before: bool) -> None:
    torch.manual_seed(0)
    dense, x = Cached().double().eval(), torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = dense(x) if ran_before else None
    pruned = fxprune.prune_module(dense, x, "random", ratio=0.5)
    assert pruned.in_place, pruned.rebuilt_because
    assert pruned.module.scales.shape == (4, 4)
    assert pruned.module.cache == {}
    with torch.no_grad():
        assert relative_difference(pruned.module(x), masked(dense, pruned.plan).eval()(x)) <= TOLERANCE
        assert expected is None or torch.equal(dense(x), expected)
