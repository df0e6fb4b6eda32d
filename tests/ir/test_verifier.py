"""The verifier refuses graphs that a defective rule or pass would make, and draws the message inside the text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fxprune.ir import FxpruneError, RequestError
from fxprune.ir.axes import atoms_of
from fxprune.ir.graph import DType, Graph, Op, Value
from fxprune.ir.parser import parse_graph
from fxprune.ir.rules import RULES
from fxprune.ir.text import print_graph
from fxprune.ir.verifier import verify
from fxprune.passes.couple.coupling import couple
from fxprune.passes.shrink.graph import make_plan, rewrite

MLP = """\
graph @mlp(%x: f32[2, 16]) -> %y
  %w1 = param "fc1.weight" : f32[8, 16]
  %w2 = param "fc2.weight" : f32[4, 8]
  %h = aten.linear(%x, %w1) : f32[2, 8]  # fc1
  %v = aten.view(%h, [2, 2, 4]) : f32[2, 2, 4]
  %u = aten.view(%v, [2, 8]) : f32[2, 8]
  %y = aten.linear(%u, %w2) : f32[2, 4]  # fc2
"""


def refusal(graph: Graph) -> str:
    with pytest.raises(FxpruneError) as caught:
        verify(graph)
    assert not isinstance(caught.value, RequestError)
    assert caught.value.exit_code == 1
    assert caught.value.hint == "this is a bug in a rule or a pass; please report it"
    return caught.value.message


def test_a_graph_that_is_well_formed_passes() -> None:
    graph = parse_graph(MLP)
    verify(graph)
    assert print_graph(graph) == MLP


def test_used_before_it_is_defined() -> None:
    graph = parse_graph(MLP)
    graph.ops.insert(0, graph.ops.pop(1))
    assert refusal(graph) == (
        "the graph is not valid: %h is used before it is defined\n"
        "graph @mlp(%x: f32[2, 16]) -> %y\n"
        '  %w1 = param "fc1.weight" : f32[8, 16]\n'
        '  %w2 = param "fc2.weight" : f32[4, 8]\n'
        "  %v = aten.view(%h, [2, 2, 4]) : f32[2, 2, 4]\n"
        "  ^^ %h is used before it is defined"
    )


def test_a_folded_operator_that_reads_what_is_computed_later() -> None:
    graph = parse_graph(MLP)
    graph.folded.append(graph.ops.pop(1))
    assert "%h is used before it is defined" in refusal(graph)


def test_defined_twice() -> None:
    graph = parse_graph(MLP)
    again = Value("h", DType("f32"), (2, 8))
    graph.ops.insert(2, Op("aten.relu", (graph.ops[0].result,), {}, (again,)))
    assert refusal(graph) == (
        "the graph is not valid: %h is defined twice\n"
        '  %w2 = param "fc2.weight" : f32[4, 8]\n'
        "  %h = aten.linear(%x, %w1) : f32[2, 8]  # fc1\n"
        "  %v = aten.view(%h, [2, 2, 4]) : f32[2, 2, 4]\n"
        "  %h = aten.relu(%h) : f32[2, 8]\n"
        "  ^^ %h is defined twice"
    )


def test_two_leaves_of_one_name() -> None:
    graph = parse_graph(MLP)
    graph.constants.append(Value("w1", DType("f32"), (3,)))
    message = refusal(graph)
    assert message.startswith("the graph is not valid: %w1 is defined twice\ngraph @mlp")


def test_the_same_value_made_twice() -> None:
    graph = parse_graph(MLP)
    graph.ops.append(graph.ops[0])
    assert "%h is defined twice" in refusal(graph)


def test_an_output_that_nothing_makes() -> None:
    graph = parse_graph(MLP)
    graph.outputs = [Value("z", DType("f32"), (2, 4))]
    assert refusal(graph).startswith("the graph is not valid: the output %z is not defined\ngraph @mlp")


def test_shapes_that_break_the_rule_of_their_operator() -> None:
    graph = parse_graph(MLP)
    graph.parameters[1] = replace(graph.parameters[1], value=Value("w2", DType("f32"), (4, 6)))
    graph.ops[3] = Op("aten.linear", (graph.ops[2].result, graph.parameters[1].value), {}, graph.ops[3].results)
    assert refusal(graph) == (
        "the graph is not valid: extents 6 and 8 should be equal\n"
        "  %h = aten.linear(%x, %w1) : f32[2, 8]  # fc1\n"
        "  %v = aten.view(%h, [2, 2, 4]) : f32[2, 2, 4]\n"
        "  %u = aten.view(%v, [2, 8]) : f32[2, 8]\n"
        "  %y = aten.linear(%u, %w2) : f32[2, 4]\n"
        "  ^^ extents 6 and 8 should be equal"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%y = aten.view(%x, [2, 3, 2]) : f32[2, 3, 2]", "16 elements cannot be 12"),
        ("%y = aten.cat([%x, %x], 1) : f32[4, 4]", "extents 8 and 4 should be equal"),
        ("%y = aten.add.Tensor(%x, %x) : f32[4]", "an operand of 2 dimensions in a result of 1"),
        ("%y = aten.permute(%x, [1, 0]) : f32[4, 5]", "extents 4 and 5 should be equal"),
        ("%y = aten.narrow(%x, 1, 2, 3) : f32[4, 3]", "an axis of extent -1"),
        ("%y = aten.view(%x, [2, 8]) : f32[8, 2]", "the argument [2, 8] should be [8, 2]"),
        ("%y, %z = aten.split_with_sizes(%x, [2, 2]) : f32[1, 4], f32[3, 4]", "the argument [2, 2] should be [1, 3]"),
        ("%y = aten.expand(%x, [2, -1, 3]) : f32[2, 4, 4]", "the argument [2, -1, 3] should be [2, 4, 4]"),
    ],
)
def test_an_operator_that_cannot_be_what_it_says(line: str, message: str) -> None:
    graph = parse_graph(f"graph @g(%x: f32[4, 4]) -> %y\n  {line}")
    drawn = refusal(graph)
    assert message in drawn.splitlines()[0]
    assert drawn.splitlines()[-1].startswith("  ^^")
    assert line in drawn


@pytest.mark.parametrize(
    "line",
    [
        "%y = aten.linear(%x, none) : f32[4, 5]",
        "%y = aten.transpose.int(%x, 0, none) : f32[4, 4]",
        "%y = aten.linear(%x, %v) : f32[4]",
        "%y = aten.softmax.int(%s, 0) : f32[]",
        "%y = aten.softmax.int(%s, -1) : f32[]",
        "%y = aten.mean.dim(%s, [0]) : f32[]",
    ],
)
def test_a_call_that_the_rule_has_no_words_for_is_not_judged(line: str) -> None:
    """Torch runs four of these: what they touch is frozen, and the model can be cut elsewhere."""
    graph = parse_graph(f"graph @g(%x: f32[4, 4], %v: f32[4], %s: f32[]) -> %y\n  {line}")
    verify(graph)
    assert couple(graph).graph is graph


def test_an_operator_without_a_rule_is_not_judged() -> None:
    text = "graph @g(%x: f32[4, 4]) -> %y\n  %y = {}(%x) : f32[7]"
    verify(parse_graph(text.format("custom.thing")))
    assert "%y" in refusal(parse_graph(text.format("aten.relu")))


def test_a_rewrite_that_forgets_a_shape_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rule without its ``resize`` would make: sizes that the operands no longer have."""
    coupling = couple(parse_graph(MLP))
    group = coupling.by_atom[atoms_of(coupling.axes[coupling.graph.ops[1].result][2])[0].id]
    plan = make_plan(coupling, {group.name: np.array([0, 2])})
    verify(rewrite(coupling, plan))
    with monkeypatch.context() as broken:
        rules = {**RULES, "aten.view": replace(RULES["aten.view"], resize=None)}
        broken.setattr("fxprune.passes.shrink.graph.rule_table", lambda: rules)
        wrong = rewrite(coupling, plan)
    assert "the argument [2, 2, 4] should be [2, 2, 2]" in refusal(wrong)
