"""Operators that create a tensor of a given shape. They tie no axes; later operators tie the axes of the result."""

from __future__ import annotations

from ..graph import Op
from .arguments import tensor, with_args
from .rule import Equations, Resized, Rule


def _couple(eq: Equations, op: Op) -> None:
    del eq, op  # a constant fill has no units of its own; the operators that use it tie its axes


def _shape(position: int) -> Rule:
    def resize(op: Op, new: Resized) -> Op:
        return with_args(op, {position: new.shape(op.result)})

    return Rule(_couple, resize, text="a fill of the shape that its uses need")


def _triangle(eq: Equations, op: Op) -> None:
    operand = tensor(op, 0)
    eq.freeze((*eq.of(operand)[-2:], *eq.of(op.result)[-2:]), "keeps a triangle of positions")
    eq.tie_all(eq.of(operand), eq.of(op.result))


def _one_hot(eq: Equations, op: Op) -> None:
    result = eq.of(op.result)
    eq.tie_all(eq.of(tensor(op, 0)), result[:-1])
    eq.freeze(result[-1:], "one position per class")


CREATION_RULES = {
    **{f"aten.{name}": _shape(0) for name in ("zeros", "ones", "full", "empty", "rand", "randn")},
    **{f"aten.{name}": _shape(1) for name in ("new_zeros", "new_ones", "new_full", "new_empty")},
    "aten.tril": Rule(_triangle, text="freezes the last two dimensions"),
    "aten.triu": Rule(_triangle, text="freezes the last two dimensions"),
    "aten.one_hot": Rule(_one_hot, text="... -> ... c, c frozen"),
}
