"""Picking positions of an axis, and integers that are positions of one: how a router names its experts.

``topk`` gives integers that count along the axis it looked at. Where they only travel (views, permutations) to a
look-up in another tensor, that tensor's dimension is the same axis: a unit that goes takes its row of the table along,
and what ``topk`` gives afterwards counts along the smaller axis on both sides.
"""

from __future__ import annotations

from ..graph import Op, Value
from .arguments import argument, integer, place, tensor
from .reduce import NORMALISED
from .rule import Equations, Rule

_NAMES = """
_to_copy _unsafe_view alias chunk clone contiguous detach expand expand_as flatten narrow permute repeat reshape select
slice split squeeze t to transpose unbind unflatten unsqueeze view
"""
PASSING = frozenset(f"aten.{name}" for name in _NAMES.split())
"""Operators whose result holds integers of their operand, none changed."""

READING = frozenset(f"aten.{name}" for name in ("index", "gather", "scatter", "scatter_add", "index_select"))
"""Operators whose rules know what positions of an axis mean."""


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
    """After an operator was stated: its results hold positions of the same axis, or no unit of the axis may go."""
    for value in [value for value in op.operands if value in eq.positions]:
        if op.packet in PASSING:
            eq.positions |= dict.fromkeys(op.made, eq.positions[value])
        elif op.packet not in READING or value in (op.args[0], *op.args[3:]):
            eq.freeze([eq.positions[value]], "computes with positions of the axis")


def picked_from(op: Op) -> Value | None:
    """The tensor of three or more dimensions of which an operator picks entries of the first by index, as experts'
    weights are picked from the stack that holds them; None for all other operators."""
    stack = argument(op, 0, "self") if op.packet == "aten.index" else None
    return stack if isinstance(stack, Value) and len(stack.shape) > 2 else None


TABLE = {"aten.topk": Rule(_topk, text="picks positions of the dimension, never fewer than k of which stay")}
