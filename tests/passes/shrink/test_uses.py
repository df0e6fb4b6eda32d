"""Attributes are followed to the operators that they are arguments of, so that their new values need no search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.passes.shrink import module as shrink
from fxprune.passes.shrink.dry_run import DryRun
from fxprune.passes.shrink.uses import Marked, observing
from fxprune.runtime.tolerances import relative_difference

from ...equivalence import TOLERANCE, masked


class Attention(nn.Module):
    """Three heads, three tensors in one, and windows of three: three threes of which one changes."""

    def __init__(self, width: int = 24, heads: int = 3, window: int = 3) -> None:
        super().__init__()
        self.heads, self.head_width, self.inner, self.window = heads, width // heads, width, window
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        x = x.view(batch * length // self.window, self.window, width)
        q, k, v = self.qkv(x).reshape(-1, self.window, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, self.window, self.inner)
        return self.out(y.reshape(batch, length, self.inner))


class Processed(nn.Module):
    """The code that reads the attributes is in a function that the forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.value, self.out = 4, nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return mixed(self, x)


def mixed(module: Any, x: Tensor) -> Tensor:
    heads = module.value(x).view(x.shape[0], -1, module.heads, 6).transpose(1, 2)
    scores = (heads @ heads.transpose(2, 3)).softmax(-1)
    return module.out((scores @ heads).transpose(1, 2).flatten(2))


class Groups(nn.Module):
    """As many groups as channels in one convolution, of as many channels as the next has, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(self.first(x)))


class Shuffle(nn.Module):
    """Sizes in a tuple, used in a shape; and one that is the end of a slice, as large as another that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 6)
        self.shape, self.rows, self.half = (4, 3), 3, 12

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)).view(-1, *self.shape).transpose(1, 2)
        return self.second(y.reshape(y.shape[0], -1)[:, : self.half]) + self.rows


class Stack(nn.Module):
    """Two layers of one class that become differently wide."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a repair was searched for")

    monkeypatch.setattr(shrink, "DryRun", refuse)


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double().eval()


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        (Attention, (2, 6, 24), {"ratio": 0.4}),
        (Processed, (2, 6, 24), {"ratio": 0.4}),
        (Groups, (2, 3, 5, 5), {"ratio": 0.5}),
        (Shuffle, (2, 6), {"ratio": 0.5}),
        (Stack, (2, 6, 24), {"ratio": 0.4, "layers": (1, 2)}),
    ],
)
def test_the_module_is_repaired_at_once(kind: type[nn.Module], shape: tuple[int, ...], options: Any) -> None:
    dense, x = built(kind), torch.randn(shape, dtype=torch.float64)
    pruned = fxprune.prune_module(dense, x, "random", **options)
    assert pruned.in_place, pruned.rebuilt_because
    with torch.no_grad():
        assert relative_difference(pruned.module(x), masked(dense, pruned.plan)(x)) <= TOLERANCE


def test_layers_of_one_class_may_become_differently_wide() -> None:
    pruned = fxprune.prune_module(built(Stack), torch.randn(2, 6, 24).double(), "random", ratio=0.4, layers=(1, 2))
    first, second = pruned.module.layers
    assert (first.heads, first.inner, first.window) == (3, 24, 3)
    assert (second.heads, second.inner, second.window) == (2, 16, 3)


def test_what_a_run_reads_is_marked_only_while_it_is_observed() -> None:
    module = built(Attention)
    x = torch.randn(2, 6, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        with observing(module) as observed:
            assert type(module.heads) is Marked
            assert torch.equal(module(x), expected)
    assert type(module.heads) is int
    assert type(module) is Attention
    assert {"heads", "head_width", "inner", "window"} <= observed.reads[""]
    assert any(
        Marked.of(3, "", "heads").origin in {getattr(i, "origin", None) for i in u.integers} for u in observed.uses
    )


class Literal(nn.Module):
    """Writes its width into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).view(-1, 8))


def test_a_module_that_holds_at_no_other_width_is_as_it_was_before_it_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, ...]] = []

    def shapes_before(model: nn.Module, *rest: Any) -> DryRun:
        seen.extend(tuple(parameter.shape) for parameter in model.parameters())
        return DryRun(model, *rest)

    monkeypatch.setattr(shrink, "DryRun", shapes_before)
    dense, x = built(Literal), torch.randn(2, 6, dtype=torch.float64)
    pruned = fxprune.prune_module(dense, x, "random", ratio=0.5)
    assert seen == [tuple(parameter.shape) for parameter in dense.parameters()]
    assert not pruned.in_place
    with torch.no_grad():
        assert relative_difference(pruned.module(x), masked(dense, pruned.plan)(x)) <= TOLERANCE


class Written(nn.Module):
    """Writes into places that its code states, which after a cut are within the tensor still, but other units."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.part, self.head = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.whole(x)).clone()
        y[:, 4:12] = torch.tanh(self.part(x))
        return self.head(y)


class Added(Written):
    """Adds to the places instead."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.whole(x)).clone()
        y[:, 4:12] += torch.tanh(self.part(x))
        return self.head(y)


class Read(Written):
    """Reads them."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.whole(x))
        return self.head(torch.cat([y[:, :4], y[:, 4:12] * torch.tanh(self.part(x)), y[:, 12:]], dim=1))


@pytest.mark.parametrize("kind", [Written, Added, Read])
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_bounds_in_the_code_end_in_the_rewritten_graph(kind: type[nn.Module], ratio: float) -> None:
    dense = built(kind)
    pruned = fxprune.prune_module(dense, torch.randn(3, 6).double(), "magnitude", ratio=ratio)
    assert not pruned.in_place
    assert "the shrunken model" in pruned.rebuilt_because
    x = torch.randn(5, 6).double()
    with torch.no_grad():
        assert relative_difference(pruned.module(x), masked(dense, pruned.plan)(x)) <= TOLERANCE
