"""Operators that write a tensor into another one; the written tensor has the axes of its place in the other."""

from __future__ import annotations

from ..graph import Arg, Op, Value
from .arguments import argument, place, tensor
from .rule import Equations, Resized, Rule
from .slicing import SLICING_RULES as SLICING


def _read(op: Op) -> Op:
    """The slice or select operator that reads what ``op`` writes."""
    target = "aten.slice.Tensor" if op.packet == "aten.slice_scatter" else "aten.select.int"
    first = "start" if op.packet == "aten.slice_scatter" else "index"
    rest: tuple[Arg, ...] = (argument(op, 2, "dim", 0), argument(op, 3, first))
    if op.packet == "aten.slice_scatter":
        rest = (*rest, argument(op, 4, "end"), argument(op, 5, "step", 1))
    return Op(target, (op.args[0], *rest), {}, (tensor(op, 1, "src"),), op.source)


def _write(eq: Equations, op: Op) -> None:
    eq.tie_all(eq.of(tensor(op, 0)), eq.of(op.result))
    read = _read(op)
    SLICING[read.packet].couple(eq, read)


def _write_bounds(op: Op, new: Resized) -> Op:
    read = _read(op)
    resize = SLICING[read.packet].resize
    assert resize is not None
    resized = resize(read, new)
    given = len(op.args) - 1  # default bounds cover the whole dimension at any extent
    return Op(op.target, (op.args[0], op.args[1], *resized.args[1:given]), {}, op.results, op.source)


def _copy(eq: Equations, op: Op) -> None:
    """copy: the second operand, broadcast to the shape of the first."""
    eq.broadcast([eq.of(value) for value in op.operands], eq.of(op.result))


def _at_index(eq: Equations, op: Op) -> None:
    """Writes slices of the source, or one value, at the positions of a dimension that an index names."""
    operand = eq.of(tensor(op, 0))
    eq.tie_all(operand, eq.of(op.result))
    dim = place(op, 1, "dim", len(operand))
    index, source = eq.of(tensor(op, 2, "index")), argument(op, 3, "source")
    if isinstance(source, Value) and source.shape:
        axes = eq.of(source)
        eq.tie_all(operand[:dim] + operand[dim + 1 :], axes[:dim] + axes[dim + 1 :])
        eq.freeze([axes[dim]], "addressed by an index")
    eq.freeze((operand[dim], *index), "addressed by an index")


_WRITE = Rule(_write, _write_bounds, text="the part that is written has the axes of what is written")

WRITING_RULES = {
    "aten.slice_scatter": _WRITE,
    "aten.select_scatter": _WRITE,
    **{
        f"aten.{name}": Rule(_at_index, text="freezes the addressed dimension, passes the others")
        for name in ("index_add", "index_copy", "index_fill", "index_reduce")
    },
    "aten.copy": Rule(_copy, text="..., ... -> ..."),
}
