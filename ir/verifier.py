"""The verifier: checks that a graph is well formed and that its shapes follow the rules of its operators."""

from __future__ import annotations

import numpy as np

from .axes import AxisId
from .errors import FxpruneError
from .graph import Graph, Op, Value
from .plan import Indices
from .rules import RULES, Equations
from .text import print_arg, print_graph


class _Mismatch(Exception):
    """Two axes that a rule equates have different extents."""


class _Shapes(Equations):
    """Equations that are checked but not solved: both sides must have the same extent."""

    def tie(self, a: AxisId, b: AxisId) -> None:
        sizes = self.axes.size(a), self.axes.size(b)
        if 1 not in sizes and sizes[0] != sizes[1]:
            raise _Mismatch(f"extents {sizes[0]} and {sizes[1]} should be equal")


def verify(graph: Graph) -> None:
    """Check that names are unique, values are defined before use, and shapes and shape arguments follow the rules.

    Raises:
        FxpruneError: with the graph's text up to the wrong operator, and what is wrong.
    """
    defined: set[Value] = set()
    names: set[str] = set()
    for value in (*graph.inputs, *(p.value for p in graph.parameters), *graph.constants):
        _define(graph, None, value, defined, names)
    shapes = _Shapes()
    for op in (*graph.folded, *graph.ops):
        for operand in op.operands:
            if operand not in defined:
                raise _error(graph, op, f"%{operand.name} is used before it is defined")
        for value in op.made:
            _define(graph, op, value, defined, names)
    for op in graph.ops:
        _check_shapes(graph, op, shapes)
    for value in graph.outputs:
        if value not in defined:
            raise _error(graph, None, f"the output %{value.name} is not defined")


def _define(graph: Graph, op: Op | None, value: Value, defined: set[Value], names: set[str]) -> None:
    if value.name in names:
        raise _error(graph, op, f"%{value.name} is defined twice")
    names.add(value.name)
    defined.add(value)


def _check_shapes(graph: Graph, op: Op, shapes: _Shapes) -> None:
    rule = RULES.get(op.packet)
    if rule is None:
        return
    shapes.op = op
    try:
        rule.couple(shapes, op)
        if rule.resize is not None:
            _check_arguments(op, rule.resize(op, _AsItIs()))
    except (_Mismatch, IndexError, ValueError, AssertionError) as error:
        raise _error(graph, op, str(error)) from error


class _AsItIs:
    """A resize to the present shapes: the rule must compute the present arguments."""

    def shape(self, value: Value) -> tuple[int, ...]:
        return value.shape

    def kept(self, value: Value, dim: int) -> Indices:
        return np.arange(value.shape[dim])


def _check_arguments(op: Op, right: Op) -> None:
    """Check that shape arguments are those of the rule; a negative one matches anything."""
    if op.target != right.target:
        return
    for arg, wanted in zip(op.args, right.args, strict=True):
        have, want = (a if isinstance(a, tuple) else (a,) for a in (arg, wanted))
        numbers = [(a, b) for a, b in zip(have, want, strict=False) if isinstance(a, int) and isinstance(b, int)]
        if len(have) == len(want) and any(a != b for a, b in numbers if a >= 0):
            raise _Mismatch(f"the argument {print_arg(arg)} should be {print_arg(wanted)}")


def _error(graph: Graph, op: Op | None, message: str) -> FxpruneError:
    shown = print_graph(graph).splitlines()
    if op is not None:
        before = 1 + len(graph.parameters) + len(graph.constants)
        at = before + next(i for i, other in enumerate((*graph.folded, *graph.ops)) if other is op)
        results = shown[at].partition(" = ")[0].lstrip()
        column = shown[at].index(results)
        shown = [*shown[max(0, at - 3) : at + 1], " " * column + "^" * len(results) + f" {message}"]
    return FxpruneError(
        f"the graph is not valid: {message}\n" + "\n".join(shown), "this is a bug in a rule or a pass; please report it"
    )
