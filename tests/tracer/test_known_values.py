"""Values that decide what runs: known where they come from known inputs, and asked in vain otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune.backends.graph_module import raise_graph
from fxprune.ir.errors import FxpruneError
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.export import trace_model
from fxprune.tracer.known_values import known_inputs


def split_by_length(x: Tensor, n: Tensor) -> Tensor:
    return torch.cat([part.mean(0, keepdim=True) for part in x.split((n + 1).tolist())])


def masked_scatter(x: Tensor, n: Tensor) -> Tensor:
    mask = torch.arange(6, device=n.device) < n.sum() - 1
    return torch.zeros_like(x).masked_scatter(mask[:, None].expand_as(x), x * 2)


def masked_index(x: Tensor, n: Tensor) -> Tensor:
    return x[torch.arange(6, device=n.device) >= n[0]]


def masked_write(x: Tensor, n: Tensor) -> Tensor:
    out = x.clone()
    out[torch.arange(6, device=n.device) == n[1]] = x[0]
    return out


def repeated(x: Tensor, n: Tensor) -> Tensor:
    return x[:2].repeat_interleave(n, dim=0)


def branch(x: Tensor, n: Tensor) -> Tensor:
    return x + 1 if (n > 1).any() else x - 1


def written_in_place(x: Tensor, n: Tensor) -> Tensor:
    counts = torch.zeros(3, dtype=torch.long, device=n.device)
    counts[0] = n[0]
    counts[1:] = n.cumsum(0)
    return x[: int(counts[-1])]


def mapped(x: Tensor, n: Tensor) -> Tensor:
    seen = torch.vmap(lambda i: i < n[1])(torch.arange(6, device=n.device))
    return torch.where(seen[:, None], x, 0.0)


class Calls(nn.Module):
    """A layer, and a function of its output and of whole numbers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.last(self.function(self.layer(x), n))


FUNCTIONS = [
    split_by_length, masked_scatter, masked_index, masked_write, repeated, branch, written_in_place, mapped,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_what_a_model_asks_is_answered_and_its_width_stays_prunable(
    function: Callable[[Tensor, Tensor], Tensor], where: str
) -> None:
    torch.manual_seed(0)
    real = Calls(function).eval()
    model = Calls(function).eval().to(where)
    x, n = torch.randn(6, 4), torch.tensor([1, 3])
    with known_inputs(model, {"n": n}, {"n"}):
        traced = trace_model(model, {"x": x.to(where), "n": n.to(where)})
    traced.graph.inputs = [value for value in traced.graph.inputs if value.name == "x"]
    (made,) = raise_graph(traced.graph, dict(real.named_parameters()), traced.constants)(x)
    torch.testing.assert_close(made, real(x, n))
    (group,) = (group for group in couple(traced.graph).prunable if "layer.weight" in group.tensors)
    assert group.tensors == {"layer.weight", "layer.bias", "last.weight"}


def test_a_value_that_no_known_one_decides_is_still_refused() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return x[: int(x.argmax() + n[0])]

    with known_inputs(model := Asks(), {"n": torch.tensor([1])}, {"n"}), pytest.raises(FxpruneError, match="cannot"):
        trace_model(model, {"x": torch.randn(5), "n": torch.tensor([1])})


def test_unknown_values_written_into_a_known_tensor_are_unknown() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            counts = n * 2
            first = counts[:1]
            first.copy_(x[:1].long())
            return x + 1 if counts[0] > 1 else x

    with known_inputs(model := Writes(), {"n": torch.tensor([1])}, {"n"}), pytest.raises(FxpruneError, match="cannot"):
        trace_model(model, {"x": torch.randn(5), "n": torch.tensor([1])})


def test_a_model_that_asks_for_what_depends_on_no_input_is_traced_too() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = torch.full((6,), 2)
            return x[rows == 2] * 2

    traced = trace_model(model := Chooses(), {"x": torch.randn(6, 3)})
    x = torch.randn(6, 3)
    torch.testing.assert_close(raise_graph(traced.graph, {}, traced.constants)(x)[0], model(x))


def test_values_of_inputs_are_asked_only_when_they_are_given() -> None:
    class Padded(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids * 2 if ids.eq(0).any() else ids * 3

    ids = torch.arange(1, 5)
    with pytest.raises(FxpruneError, match="cannot trace"):
        trace_model(Padded(), {"ids": ids})
    traced = trace_model(Padded(), {"ids": ids}, values={"ids": ids})
    assert torch.equal(raise_graph(traced.graph, {}, traced.constants)(ids)[0], ids * 3)
