"""Modules that run on a fast path of torch are pruned; modules whose outputs change from call to call are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.ir.errors import FxpruneError
from fxprune.runtime.tolerances import relative_difference, same_function

from ..equivalence import masked


class Attends(nn.Module):
    """Self-attention between two layers; torch has a fast path for it that only runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(self.attention(y, y, y, need_weights=False)[0])


def encodes(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, **options)
    return nn.Sequential(nn.Linear(6, 24), layer, nn.Linear(24, 3))


@pytest.mark.parametrize("make", [Attends, encodes, lambda: encodes(norm_first=True, activation="gelu")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fast_path_of_torch_is_no_randomness(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = make().to(dtype).eval()
    pruned = fxprune.prune_module(dense, torch.randn(2, 5, 6, dtype=dtype), "magnitude{channels=false}", ratio=0.5)
    fresh = torch.randn(4, 5, 6, dtype=dtype)
    assert any(change.kind == "heads" and change.after == 2 for change in pruned.groups)
    with torch.no_grad():
        got, expected = pruned.module(fresh), masked(dense, pruned.plan)(fresh)
    assert relative_difference(got, expected) <= same_function(dtype)


class Changing(nn.Module):
    """Every second call, or every call, gives another output, by less than two programs for one function may differ."""

    def __init__(self, alternates: bool, by: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.alternates, self.by, self.calls = alternates, by, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.last(self.first(x)) * (1 + self.by * (self.calls % 2 if self.alternates else self.calls))


@pytest.mark.parametrize(("alternates", "by"), [(True, 0.1), (False, 0.1), (False, 1e-5)])
def test_a_module_that_changes_is_refused_however_little(alternates: bool, by: float) -> None:
    with pytest.raises(FxpruneError, match="different outputs for the same inputs"):
        fxprune.prune_module(Changing(alternates, by), torch.randn(2, 6), "magnitude", ratio=0.5)
