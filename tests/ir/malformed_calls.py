"""Calls that no rule has words for: every row of the rules' tables with something missing, or of the wrong kind.

``python -O -m fxprune.tests.ir.malformed_calls`` prints what goes wrong with one row of each operator where
assertions are not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fxprune.ir.cost import macs_of
from fxprune.ir.graph import Arg, DType, Graph, Op, Parameter, Value
from fxprune.ir.rules import AS_IT_IS, RULES, Equations, contraction_of
from fxprune.passes.couple.coupling import couple

F64 = DType("f64")
ODD: tuple[Arg, ...] = (99, -99, "odd", None, True, 0.5, (), (0, 99), Value("odd", F64, ()), Value("odd", F64, (0,)))
"""What stands in the place of an argument."""


def reshaped(arg: Arg, shape: tuple[int, ...]) -> Arg:
    """An argument whose tensors have another shape."""
    if isinstance(arg, Value):
        return replace(arg, shape=shape)
    return tuple(reshaped(item, shape) for item in arg) if isinstance(arg, tuple) else arg


def variants(op: Op) -> Iterator[Op]:
    """A call with one thing wrong with it, or two."""
    shapes: tuple[tuple[int, ...], ...] = ((), (0,), (7,), (2, 3, 4, 5, 6, 7))
    for shape in shapes:
        yield replace(op, args=tuple(reshaped(arg, shape) for arg in op.args))
        results = tuple(None if value is None else replace(value, shape=shape) for value in op.results)
        yield replace(op, results=results)
        yield replace(op, args=tuple(reshaped(arg, shape) for arg in op.args), results=results)
    yield replace(op, results=())
    yield replace(op, results=(None,))
    for count in range(len(op.args)):
        yield replace(op, args=op.args[:count])
        for odd in ODD:
            yield replace(op, args=(*op.args[:count], odd, *op.args[count + 1 :]))
    for odd in ODD:
        yield replace(op, args=(*op.args[:1], odd, odd, odd))


def outcome(op: Op) -> str | None:
    """What a rule raises on a call, None where nothing."""
    eq, rule = Equations(), RULES[op.packet]
    eq.op = op
    try:
        rule.couple(eq, op)
        if rule.resize is not None:
            rule.resize(op, AS_IT_IS)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return None


def fault(op: Op) -> str | None:
    """What is wrong with how a call is dealt with: None where it is coupled, or frozen because the rule raised."""
    values = dict.fromkeys(op.operands)
    graph = Graph("g", parameters=[Parameter(value, f"p{i}") for i, value in enumerate(values)], ops=[op])
    raised = outcome(op)
    try:
        coupling = couple(graph)
        macs_of(op)
        found = contraction_of(op)
        if found is not None:
            found.products(op)
            found.taken_in(op)
    except Exception as error:
        return f"{op.target}{op.args} raised {type(error).__name__}: {error}"
    if raised is not None and coupling.prunable:
        return f"{op.target}{op.args}: the rule raised {raised}, and {coupling.prunable[0].name} is not frozen"
    return None


def calls() -> Iterator[Op]:
    """The call of every row, as torch runs it."""
    from .replay import example
    from .test_rules import ROWS, draw

    for row in ROWS:
        yield example(row.operands, row.call, draw).op


if __name__ == "__main__":
    of_each = {call.packet: call for call in calls()}.values()
    for faulty in filter(None, (fault(variant) for call in of_each for variant in variants(call))):
        print(faulty)
