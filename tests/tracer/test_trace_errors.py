"""What stands in the way of a trace is named with its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune.ir import FxpruneError
from fxprune.tracer.export import trace_model

STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x + torch.randn_like(x),
    "shuffle": lambda x: x[:, torch.randperm(4)],
    "dropout": lambda x: functional.dropout(x, 0.5, training=True),
    "dropout of nothing": lambda x: functional.dropout(x, 0.0, training=True),
    "selection": lambda x: x[x[:, 0] > 0],
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
}


class Inner(nn.Module):
    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.trouble = trouble
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.trouble == "branch" and x.sum() > 0:
            return x
        return STEPS[self.trouble](x) if self.trouble in STEPS else x.relu()


class Outer(nn.Module):
    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.inner = Inner(trouble)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("branch", r"torch.export cannot trace Outer, at inner \(tracer/test_trace_errors.py:\d+\): "),
        (
            "noise",
            r"Outer draws random numbers as it runs \(aten.randn_like at inner \S*test_trace_errors.py:\d+\)",
        ),
        ("shuffle", r"Outer draws random numbers as it runs \(aten.randperm at inner "),
        ("dropout", r"Outer draws random numbers as it runs \(aten.dropout at inner "),
        ("selection", "Outer has tensors whose extents depend on values, which no static graph can hold"),
        ("attention", r"Outer draws random numbers as it runs \(aten.scaled_dot_product_attention at inner "),
    ],
)
def test_it_is_refused_where_it_stands(trouble: str, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        trace_model(Outer(trouble).eval(), {"x": torch.zeros(3, 4)})
    assert caught.value.hint


@pytest.mark.parametrize("harmless", ["", "dropout of nothing"])
def test_nothing_else_is(harmless: str) -> None:
    assert trace_model(Outer(harmless).eval(), {"x": torch.zeros(3, 4)}).graph.ops
