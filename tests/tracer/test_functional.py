"""Writes in a forward are expressed on the exported graph: the same function, without a second trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import fxprune
from fxprune.backends.graph_module import compute
from fxprune.ir.graph import Graph
from fxprune.runtime.tolerances import relative_difference
from fxprune.tracer.export import trace_model
from fxprune.tracer.functional import functional, writes

from ..equivalence import TOLERANCE, masked, tensors_of

Forward = Callable[[Tensor], Tensor]


def chained(y: Tensor) -> Tensor:
    return F.silu(torch.relu_(y.add_(0.5)), inplace=True)


def read_through_an_older_view(y: Tensor) -> Tensor:
    flat = y.flatten(2)
    y.mul_(2.0)
    return flat.mean(-1)[:, :, None, None] + y


def through_a_dropout(y: Tensor) -> Tensor:
    same = F.dropout(y, 0.5, training=False)
    same.relu_()
    return y + same


def part_by_slice(y: Tensor) -> Tensor:
    y[:, :, 1:3] = y[:, :, 2:4] * 2
    return y


def part_of_a_transposed_view(y: Tensor) -> Tensor:
    rows = y.reshape(y.shape[0], y.shape[1], -1).transpose(1, 2)
    rows[:, :3] = rows[:, 3:6].sum(1, keepdim=True)
    return y


def one_of_the_chunks(y: Tensor) -> Tensor:
    first, second = y.chunk(2, 2)
    second.mul_(first[:, :, : second.shape[2]])
    return y


def one_that_unbind_gave(y: Tensor) -> Tensor:
    y.unbind(3)[1].add_(1.5)
    return y


def a_row_of_a_permuted_view(y: Tensor) -> Tensor:
    y.permute(0, 3, 1, 2)[:, -1].sub_(0.25)
    return y


def where_a_mask_is(y: Tensor) -> Tensor:
    y.flatten(2).masked_fill_(y.flatten(2) < 0, 7.0)
    return y


def by_positions(y: Tensor) -> Tensor:
    y[:, :, torch.tensor([0, 2])] = 0.5
    return y


def twice_through_two_names(y: Tensor) -> Tensor:
    one, other = y.view(y.shape[0], y.shape[1], -1), y.squeeze(0).unsqueeze(0)
    one += 1
    other *= 3
    return one.unflatten(2, y.shape[2:]) + y


FORWARDS: list[Forward] = [
    chained, read_through_an_older_view, through_a_dropout, part_by_slice, part_of_a_transposed_view,
    one_of_the_chunks, one_that_unbind_gave, a_row_of_a_permuted_view, where_a_mask_is, by_positions,
    twice_through_two_names,
]  # fmt: skip


class Net(nn.Module):
    """A convolution, what is done to its result, and a convolution that reads it."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.change(self.norm(self.first(x))))


def net(change: Callable[[Tensor], Any]) -> Net:
    torch.manual_seed(0)
    return Net(change).double().eval()


@pytest.fixture
def no_second_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the program was traced a second time")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", refuse)


def computed_alike(change: Forward) -> Graph:
    """The graph of a net, when it computes what the net does."""
    module, x = net(change), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    traced = trace_model(module, {"x": x})
    with torch.no_grad():
        expected = module(x)
    (got,) = compute(traced.graph, tensors_of(module), traced.constants, [x])
    assert relative_difference(got, expected) <= TOLERANCE
    return traced.graph


@pytest.mark.usefixtures("no_second_trace")
@pytest.mark.parametrize("change", FORWARDS, ids=lambda change: change.__name__)
def test_the_graph_computes_what_the_module_does(change: Forward) -> None:
    graph = computed_alike(change)
    assert not any(op.target.split(".")[1].endswith("_") for op in (*graph.ops, *graph.folded))


@pytest.mark.usefixtures("no_second_trace")
@pytest.mark.parametrize(
    "change", [chained, through_a_dropout, part_by_slice, one_of_the_chunks, one_that_unbind_gave],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_removing_is_zeroing_where_the_forward_writes(change: Forward) -> None:
    module, x = net(change), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pruned = fxprune.prune_module(module, x, "random", ratio=0.5)
    with torch.no_grad():
        expected, got = masked(module, pruned.plan)(x), pruned.module(x)
    assert pruned.plan.slices["first.weight", 0].size == 4
    assert relative_difference(got, expected) <= TOLERANCE


def exported(change: Callable[[Tensor], Any]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(net(change), (torch.randn(2, 3, 8, 8, dtype=torch.float64),), strict=False)


def test_a_graph_without_writes_stays_itself() -> None:
    graph = exported(torch.relu).graph_module.graph
    assert functional(graph) is graph


def into_another_dtype(y: Tensor) -> Tensor:
    return y.float().add_(y).double()


def to_an_expanded_view(y: Tensor) -> Tensor:
    y.diagonal(0, 2, 3).add_(1.0)
    return y


@pytest.mark.parametrize("change", [into_another_dtype, to_an_expanded_view])
def test_what_cannot_be_expressed_is_left_to_torch(change: Forward) -> None:
    graph = exported(change).graph_module.graph
    assert any(map(writes, graph.nodes))
    assert functional(graph) is None
    assert computed_alike(change) is not None
