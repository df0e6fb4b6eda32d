"""Operators that freeze all dimensions, each with the reason."""

from __future__ import annotations

from ..graph import Op
from .rule import Equations, Rule

WHOLE_REASONS = {
    "addresses memory by strides": "as_strided empty_strided",
    "pairs the positions of two axes": "diag diag_embed diagonal linalg_diagonal trace",
    "counts positions by what they hold": "bincount masked_scatter masked_select nonzero",
    "compares every row with every other": "_pdist_forward pdist",
    "solves for all positions at once": "linalg_lstsq linalg_tensorinv linalg_tensorsolve",
    "raises every position to all powers": "linalg_vander",
}


def _whole(reason: str) -> Rule:
    def couple(eq: Equations, op: Op) -> None:
        eq.freeze((axis for value in (*op.operands, *op.made) for axis in eq.of(value)), reason)

    return Rule(couple, text=f"freezes every dimension: {reason}")


WHOLE_RULES = {f"aten.{name}": _whole(reason) for reason, names in WHOLE_REASONS.items() for name in names.split()}
