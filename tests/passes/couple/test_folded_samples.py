"""Constants that a module makes as it runs: cut where they count samples too; positions that look like a count."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.ir.errors import FxpruneError

from ...equivalence import TOLERANCE, tensors_of, zeroed


class Heads(nn.Module):
    """Samples and heads share a dimension, over which a table is expanded. The code states how many heads there are,
    so that only the rewritten graph can be smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        heads = self.first(x).view(b, 5, 4, 3).transpose(1, 2).reshape(b * 4, 5, 3)
        table = torch.sin(torch.arange(15, dtype=x.dtype)).view(1, 5, 3).expand(b * 4, 5, 3)
        return self.last((heads * table).view(b, 4, 5, 3).transpose(1, 2).reshape(b, 5, 12))


class HeadsFirst(Heads):
    """The same with the samples of a head side by side."""

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        heads = self.first(x).view(b, 5, 4, 3).permute(2, 0, 1, 3).reshape(4 * b, 5, 3)
        table = torch.sin(torch.arange(15, dtype=x.dtype)).view(1, 5, 3).expand(4 * b, 5, 3)
        return self.last((heads * table).view(4, b, 5, 3).permute(1, 2, 0, 3).reshape(b, 5, 12))


class Wide(nn.Module):
    """As wide as the number of samples that modules are traced with, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 1100), nn.Linear(1100, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * torch.sin(torch.arange(1100, dtype=x.dtype)))


class Stated(nn.Module):
    """States a width of which a quarter less is the number of samples that modules are traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 1345), nn.Linear(1345, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).view(-1, 1345))


def example(samples: int) -> Tensor:
    return torch.randn(samples, 5, 6, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)


def pruned(net: nn.Module, samples: int, pipeline: str) -> tuple[nn.Module, Pruned]:
    torch.manual_seed(0)
    net = net.double().eval()
    return net, prune_module(net, example(samples), pipeline)


def differs(net: nn.Module, result: Pruned, samples: int) -> float:
    """From the original with zeros, relative."""
    masked = copy.deepcopy(net)
    masked.load_state_dict(zeroed(result.plan, tensors_of(net)))
    with torch.no_grad():
        expected, got = masked(example(samples)), result.module(example(samples))
    return float((expected - got).abs().max() / expected.abs().max())


def test_a_table_that_is_expanded_over_samples_and_heads() -> None:
    net, result = pruned(Heads(), 3, "random{ordered=true,ratio=0.5,seed=0}")
    assert isinstance(result.module, torch.fx.GraphModule)
    assert result.module.get_parameter("first.weight").shape[0] == 6  # two heads of three
    assert not result.fixed_batch
    assert max(differs(net, result, samples) for samples in (1, 3, 8)) <= TOLERANCE


def test_samples_within_heads_are_refused_but_for_one_number_of_them() -> None:
    with pytest.raises(FxpruneError, match="holds samples within units") as caught:
        pruned(HeadsFirst(), 3, "random{ordered=true,ratio=0.5,seed=0}")
    assert "a single sample" in caught.value.hint
    net, result = pruned(HeadsFirst(), 1, "random{ordered=true,ratio=0.5,seed=0}")
    assert differs(net, result, 1) <= TOLERANCE


def test_a_position_is_no_number_of_samples() -> None:
    net, result = pruned(Wide(), 3, "random{ordered=true,ratio=0.05,seed=3}")
    assert 1009 in result.plan.slices["first.weight", 0]
    assert max(differs(net, result, samples) for samples in (1, 3, 8)) <= TOLERANCE


def test_as_many_units_as_samples_in_the_trace_are_refused_but_for_one_number_of_samples() -> None:
    with pytest.raises(FxpruneError, match="the graph of the Stated does not run on the example") as caught:
        pruned(Stated(), 3, "random{ordered=true,ratio=0.25,seed=0}")
    assert "a single sample" in caught.value.hint
    net, result = pruned(Stated(), 1, "random{ordered=true,ratio=0.25,seed=0}")
    assert result.module.get_parameter("first.weight").shape[0] == 1009
    assert differs(net, result, 1) <= TOLERANCE
