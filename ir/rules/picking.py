"""Operators that pick positions of an axis, such as a router that picks experts.

``topk`` returns integers that are positions of its axis. If they reach a look-up in another tensor unchanged (through
views and permutations), the dimension that they index is the same axis. A removed unit then also removes its row of
that tensor, and the integers of ``topk`` count along the smaller axis in both places.
"""

from __future__ import annotations

from ..graph import Op, Value
from .arguments import argument, integer, place, tensor, with_args
from .reduce import NORMALISED
from .rule import Equations, Rule

_PICKING_OPERATORS = """
_to_copy _unsafe_view alias chunk clone contiguous detach expand expand_as flatten narrow permute repeat reshape select
slice split squeeze t to transpose unbind unflatten unsqueeze view
"""
PASSING = frozenset(f"aten.{name}" for name in _PICKING_OPERATORS.split())
"""Operators whose result holds values of their operand, unchanged."""

READING = frozenset(
    f"aten.{name}"
    for name in ("embedding", "index", "gather", "take_along_dim", "scatter", "scatter_add", "index_select")
)
"""Operators whose rules handle indices that are positions of an axis."""

COMPARING = frozenset(("aten.eq.Scalar", "aten.ne.Scalar"))
"""Calls that say where a tensor holds one number, such as the id of the padding token."""


def _topk(eq: Equations, op: Op) -> None:
    operand = eq.of(tensor(op, 0))
    dim = place(op, 2, "dim", len(operand), -1)
    values, indices = op.made
    for result in (values, indices):
        for d, (a, b) in enumerate(zip(operand, eq.of(result), strict=True)):
            if d == dim:
                eq.freeze([b], "a place for each that was picked")
            else:
                eq.tie(a, b)
    eq.mark([operand[dim]], NORMALISED)
    eq.mark([operand[dim]], "experts")
    eq.keep_at_least(operand[dim], integer(op, 1, "k"))
    eq.positions[indices] = operand[dim]


def follow_positions(eq: Equations, op: Op) -> None:
    """After the rule of an operator: its results hold positions of the same axis, or the axis is frozen."""
    for value in [value for value in op.operands if value in eq.positions]:
        if op.packet in PASSING:
            eq.positions |= dict.fromkeys(op.made, eq.positions[value])
        elif eq.positions[value] in eq.named and compared(op) is not None:
            continue
        elif op.packet not in READING or value in (op.args[0], *op.args[3:]):
            eq.freeze([eq.positions[value]], "computes with positions of the axis")


def compared(op: Op) -> int | None:
    """The number that a call compares a tensor with; None for every other call."""
    number = op.args[1] if op.target in COMPARING and len(op.args) == 2 else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def compared_with(op: Op, number: int) -> Op:
    """The same call with another number."""
    return with_args(op, {1: number})


def picked_from(op: Op) -> Value | None:
    """The tensor of three or more dimensions of which an operator picks entries of the first by index, as experts'
    weights are picked from the stack that holds them; None for all other operators."""
    stack = argument(op, 0, "self") if op.packet == "aten.index" else None
    return stack if isinstance(stack, Value) and len(stack.shape) > 2 else None


PICKING_RULES = {"aten.topk": Rule(_topk, text="picks positions of the dimension, never fewer than k of which stay")}
