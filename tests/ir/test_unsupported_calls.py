"""A call that its rule has no words for freezes what it touches, with the reason, and raises nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fxprune.api.modules.prune import prune_module
from fxprune.ir import FxpruneError
from fxprune.ir.cost import macs
from fxprune.ir.graph import Op
from fxprune.ir.parser import parse_graph
from fxprune.ir.rules import RULES, Equations, Resized, Rule, rule_table
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.shrink.graph import make_plan, rewrite

from .malformed_calls import calls, fault, variants

CALLS = list(calls())

PutRule = Callable[[str, Rule], None]


@pytest.fixture
def put_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[PutRule]:
    """Puts another rule in the place of an operator's own, for one test."""

    def put(packet: str, rule: Rule) -> None:
        monkeypatch.setitem(RULES, packet, rule)
        rule_table.cache_clear()

    yield put
    monkeypatch.undo()
    rule_table.cache_clear()


AROUND = """\
graph @g(%i: f32[3, 5]) -> %o
  %a = param "up.weight" : f32[4, 5]
  %b = param "down.weight" : f32[2, 4]
  %x = aten.linear(%i, %a) : f32[3, 4]
  %s = aten.sum.dim_IntList(%x, [0, 1]) : f32[]
  %y = {call} : {made}
  %o = aten.linear(%x, %b) : f32[3, 2]
"""
"""A call on something whose units could go."""


def around(call: str, made: str = "f32[3, 4]") -> Coupling:
    return couple(parse_graph(AROUND.format(call=call, made=made)))


def reason(call: str, made: str = "f32[3, 4]") -> str | None:
    return next(g.frozen for g in around(call, made).groups.values() if g.tensors == {"up.weight", "down.weight"})


REASONS = {
    "aten.linear(%x)": "aten.linear: operand 1 of '... k, n k, n? -> ... n' is no tensor",
    "aten.linear(%x, 3)": "aten.linear: operand 1 of '... k, n k, n? -> ... n' is no tensor",
    "aten.mm(%x, %s)": "aten.mm: 'k n' has 2 dimensions, %s has 0",
    "aten.softmax.int(%x, 2)": "aten.softmax.int argument dim is 2, of 2",
    "aten.softmax.int(%x, -3)": "aten.softmax.int argument dim is -3, of 2",
    'aten.softmax.int(%x, "last")': "aten.softmax.int argument dim is no integer",
    "aten.softmax.int(%x, true)": "aten.softmax.int argument dim is no integer",
    "aten.mean.dim(%x, [5])": "aten.mean.dim argument dim is 5, of 2",
    "aten.layer_norm(%x, 4)": "aten.layer_norm argument normalized_shape is no list of integers",
    'aten.layer_norm(%x, ["4"])': "aten.layer_norm argument normalized_shape is no list of integers",
    "aten.cat([%x, %x], 7)": "aten.cat argument dim is 7, of 2",
    "aten.narrow(%x, 1, 3, 4)": "an axis of extent -3",
    "aten.select.int(%x, 1, 4)": "aten.select.int argument index is 4, of 4",
    "aten.slice.Tensor(%x, 1, 0, 4, 0)": "ZeroDivisionError: integer modulo by zero",
    "aten.permute(%x, [0, 2])": "aten.permute argument dims is 2, of 2",
    "aten.permute(%x, [0])": "ValueError: zip() argument 2 is longer than argument 1",
    "aten.reshape(%x, [5, 5])": "12 elements cannot be 25",
    "aten.index.Tensor(%x, [none, none, %x])": "3 indices for 2 dimensions",
    "aten.index.Tensor(%x, %x)": "aten.index.Tensor argument indices is no list",
    'aten.einsum("ij,jk->ik", [%x])': "'ij,jk->ik' of 1 tensors",
    "aten.einsum(3, [%x])": "aten.einsum argument equation is no string",
    "aten.pad(%x, [1, 1, 1, 1, 1, 1])": "6 amounts of padding for 2 dimensions",
    "aten.prelu(%x)": "aten.prelu argument 1 is no tensor",
    "aten.group_norm(%x, 0)": "ZeroDivisionError: integer division or modulo by zero",
    "aten.add.Tensor(%x, %x)": "an operand of 2 dimensions in a result of 1",
}


@pytest.mark.parametrize("call", REASONS)
def test_the_reason_is_the_rules(call: str) -> None:
    made = {"aten.reshape(%x, [5, 5])": "f32[5, 5]", "aten.add.Tensor(%x, %x)": "f32[4]"}.get(call, "f32[3, 4]")
    packet = ".".join(call.partition("(")[0].split(".")[:2])
    assert reason(call, made) == f"an unusual call: {REASONS[call]} ({packet})"


def test_a_softmax_of_a_single_number_freezes_nothing_else() -> None:
    coupling = around("aten.softmax.int(%s, 0)", "f32[]")
    assert [group.name for group in coupling.prunable] == ["model:channels"]


RAISED = [ValueError, ZeroDivisionError, IndexError, KeyError, AssertionError, TypeError, StopIteration, RecursionError]


@pytest.mark.parametrize("error", RAISED)
@pytest.mark.parametrize("half", ["couple", "resize"])
def test_whatever_a_rule_raises_freezes_what_the_call_touches(
    put_rule: PutRule, half: str, error: type[Exception]
) -> None:
    def fails(*_: Any) -> Any:
        raise error("of its own")

    def nothing(*_: Any) -> None: ...

    put_rule("aten.relu", Rule(fails) if half == "couple" else Rule(nothing, fails))
    found = reason("aten.relu(%x)")
    assert found is not None
    assert found.startswith(f"an unusual call: {error.__name__}: ")
    assert "of its own" in found


ROUTED = """\
graph @g(%x: f32[7, 6]) -> %out
  %gate = param "gate.weight" : f32[5, 6]
  %table = param "experts" : f32[5, 6]
  %scores = aten.linear(%x, %gate) : f32[7, 5]
  %v, %i = aten.topk(%scores, 1) : f32[7, 1], i64[7, 1]
  %rows = aten.index.Tensor(%table, [%i]) : f32[7, 1, 6]
  %j = {call} : i64[7, 1]
  %out = aten.sum.dim_IntList(%rows, [1]) : f32[7, 6]
"""


def test_an_axis_whose_positions_an_unsupported_call_reads_is_frozen() -> None:
    free = couple(parse_graph(ROUTED.format(call="aten.view(%i, [7, 1])")))
    assert [group.size for group in free.prunable] == [5]
    read = couple(parse_graph(ROUTED.format(call="aten.transpose.int(%i, 0, 9)")))
    (gate,) = (group for group in read.groups.values() if "gate.weight" in group.tensors and group.size == 5)
    assert gate.frozen == "an unusual call: aten.transpose.int argument dim1 is 9, of 2 (aten.transpose)"


def test_arguments_that_cannot_be_rewritten_later_name_the_operator(put_rule: PutRule) -> None:
    def resize(op: Op, new: Resized) -> Op:
        if new.shape(op.result) != op.result.shape:
            raise ZeroDivisionError
        return op

    put_rule("aten.relu", Rule(RULES["aten.relu"].couple, resize))
    coupling = around("aten.relu(%x)")
    message = "the arguments of aten.relu cannot be rewritten: ZeroDivisionError"
    with pytest.raises(FxpruneError, match=re.escape(message)) as caught:
        rewrite(coupling, make_plan(coupling, {"model:channels": np.arange(3)}))
    assert "leave the groups" in caught.value.hint


def test_an_operator_without_a_tensor_is_not_counted() -> None:
    graph = parse_graph(AROUND.format(call="aten.linear(%x, 3)", made="f32[3, 4]"))
    assert macs(graph) == 3 * 4 * 5 + 3 * 4 * 2 + 3 * 4 * 4
    graph.ops.append(Op("aten.mm", (), {}, ()))
    assert macs(graph) == 3 * 4 * 5 + 3 * 4 * 2 + 3 * 4 * 4


@given(st.data())
@settings(max_examples=300)
def test_malformed_calls_freeze_and_do_not_raise(data: st.DataObject) -> None:
    once = data.draw(st.sampled_from(CALLS))
    op = data.draw(st.sampled_from(list(variants(once))))
    twice = [op, *variants(op)]
    assert fault(data.draw(st.sampled_from(twice))) is None


def test_so_do_they_where_assertions_are_not_run() -> None:
    command = [sys.executable, "-O", "-m", "fxprune.tests.ir.malformed_calls"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout[-2000:] + done.stderr[-2000:]


def test_the_check_finds_a_call_that_is_not_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    (op,) = (op for op in CALLS if op.target == "aten.mm")
    without_weight = Op(op.target, op.args[:1], {}, op.results)
    assert fault(without_weight) is None
    monkeypatch.setattr(Equations, "freeze_call", lambda *_: None)
    monkeypatch.setattr("fxprune.passes.couple.coupling._lonely", lambda *_: {})
    assert "is not frozen" in (fault(without_weight) or "")


class Unusual(nn.Module):
    """Its gate is a softmax of a single number, and its last layer has a weight without a dimension of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.gate, self.last = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x)) * torch.softmax(self.gate, 0)
        return F.linear(self.down(hidden), self.last)


def test_a_model_with_unsupported_calls_is_cut_elsewhere() -> None:
    torch.manual_seed(0)
    result = prune_module(Unusual(), torch.randn(3, 6), "random", ratio=0.5, seed=0)
    assert result.module.up.weight.shape == (6, 6)
    assert result.module.last.shape == (6,)
