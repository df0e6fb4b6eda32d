"""Which outputs of a model count: what is no output freezes nothing."""

from __future__ import annotations

import pytest
import torch

from fxprune.ir.errors import FxpruneError
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.export import trace_model


class Memory(torch.nn.Module):
    """Returns its hidden state beside its logits, and rescales a weight when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 8)
        self.last = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.last.weight.div_(1.0)
        hidden = self.first(x)
        return {"memory": hidden, "logits": self.last(hidden)}


def frozen(output: str) -> str | None:
    traced = trace_model(Memory().eval(), {"x": torch.zeros(5, 3)}, output=output)
    (hidden,) = (group for group in couple(traced.graph).groups.values() if group.size == 8)
    assert [value.shape for value in traced.graph.outputs] == ([(5, 2)] if output == "logits" else [(5, 8), (5, 2)])
    return hidden.frozen


def test_the_named_output_is_the_only_one() -> None:
    assert frozen("logits") is None


def test_without_a_name_or_where_there_is_none_every_output_freezes() -> None:
    for output in ("", "no such key"):
        reason = frozen(output)
        assert reason is not None
        assert reason.startswith("output of the model")


def test_a_weight_that_the_forward_writes_to_is_named() -> None:
    traced = trace_model(Memory().eval(), {"x": torch.zeros(5, 3)})
    assert traced.written == "last.weight"
    with pytest.raises(FxpruneError, match=r"writes to its own weights when it runs: last\.weight"):
        traced.refuse_written()
