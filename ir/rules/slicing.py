"""Operators that split and join dimensions: cat, split, slice, pad, index."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes import ONE, AxisId
from ..errors import UnsupportedCall
from ..graph import Arg, Op, Value
from .arguments import argument, integer, integers, place, tensor, with_args
from .rule import Equations, Resized, Rule


def _pass_others(eq: Equations, operand: Sequence[AxisId], result: Sequence[AxisId], dim: int) -> None:
    for d, (a, b) in enumerate(zip(operand, result, strict=True)):
        if d != dim:
            eq.tie(a, b)


def _cat(eq: Equations, op: Op) -> None:
    operands = [value for value in op.operands if value.shape != (0,)]
    result = eq.of(op.result)
    dim = place(op, 1, "dim", len(result))
    for value in operands:
        _pass_others(eq, eq.of(value), result, dim)
    eq.tie(eq.axes.concat(eq.of(value)[dim] for value in operands), result[dim])


def _stack(eq: Equations, op: Op) -> None:
    result = eq.of(op.result)
    dim = place(op, 1, "dim", len(result))
    operands = list(op.operands)
    for value in operands:
        eq.tie_all(eq.of(value), [axis for d, axis in enumerate(result) if d != dim])
    eq.tie(eq.axes.concat([ONE] * len(operands)), result[dim])


def _unbind(eq: Equations, op: Op) -> None:
    operand = eq.of(tensor(op, 0))
    dim = place(op, 1, "dim", len(operand))
    for value in op.made:
        eq.tie_all([axis for d, axis in enumerate(operand) if d != dim], eq.of(value))
    eq.tie(eq.axes.concat([ONE] * len(op.results)), operand[dim])


def _split() -> Rule:
    """split, split_with_sizes, chunk, tensor_split: the dimension is the concat of the results'."""

    def couple(eq: Equations, op: Op) -> None:
        operand = eq.of(tensor(op, 0))
        dim = place(op, 2, "dim", len(operand))
        for value in op.made:
            _pass_others(eq, operand, eq.of(value), dim)
        eq.tie(operand[dim], eq.axes.concat(eq.of(value)[dim] for value in op.made))

    def resize(op: Op, new: Resized) -> Op:
        dim = place(op, 2, "dim", len(tensor(op, 0).shape))
        sizes = tuple(new.shape(value)[dim] for value in op.made)
        if op.packet == "aten.split_with_sizes":
            return with_args(op, {1: sizes})
        if sizes == tuple(value.shape[dim] for value in op.made):
            return op
        return Op("aten.split_with_sizes", (op.args[0], sizes, dim), {}, op.results, op.source)

    return Rule(couple, resize, text="n -> concat of the results' dimensions")


def _bounds(op: Op, extent: int) -> tuple[int, int, int]:
    """Start, end and step of a slice, normalised."""
    start, end = argument(op, 2, "start"), argument(op, 3, "end")
    step = integer(op, 4, "step", 1)
    return (*slice(start, end).indices(extent)[:2], step)


def _cut(eq: Equations, axis: AxisId, start: int, end: int) -> AxisId:
    """Cut an axis at two positions; returns the part between them."""
    extent = eq.axes.size(axis)
    middle = eq.axes.fresh(end - start)
    eq.tie(axis, eq.axes.concat([eq.axes.fresh(start), middle, eq.axes.fresh(extent - end)]))
    return middle


def _slice(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dim", len(operand))
    extent = tensor(op, 0).shape[dim]
    start, end, step = _bounds(op, extent)
    _pass_others(eq, operand, result, dim)
    if step != 1:
        _strided(eq, operand[dim], result[dim], step)
    elif start < end:
        eq.tie(operand[dim] if (start, end) == (0, extent) else _cut(eq, operand[dim], start, end), result[dim])


def _strided(eq: Equations, axis: AxisId, result: AxisId, step: int) -> None:
    """Every ``step``-th position: the axis is a product, and the slice reads one position of the inner factor."""
    if eq.axes.size(axis) % step or eq.axes.size(result) * step != eq.axes.size(axis):
        eq.freeze((axis, result), f"a slice with step {step} that does not divide the axis")
        return
    inner = eq.axes.fresh(step)
    eq.freeze([inner], f"a slice with step {step}")
    eq.tie(axis, eq.axes.product((result, inner)))


def _slice_bounds(op: Op, new: Resized) -> Op:
    operand = tensor(op, 0)
    dim = place(op, 1, "dim", len(operand.shape))
    start, end, step = _bounds(op, operand.shape[dim])
    if step != 1 or new.shape(operand)[dim] == operand.shape[dim]:
        return op
    kept, end = new.kept(operand, dim), max(start, end)
    low, high = int((kept < start).sum()), int((kept < end).sum())
    return Op(op.target, (op.args[0], dim, low, high), {}, op.results, op.source)


def _narrow(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dim", len(operand))
    start, length = _narrow_start(op, dim), integer(op, 3, "length")
    _pass_others(eq, operand, result, dim)
    eq.tie(_cut(eq, operand[dim], start, start + length), result[dim])


def _narrow_start(op: Op, dim: int) -> int:
    start = integer(op, 2, "start")
    return start + tensor(op, 0).shape[dim] if start < 0 else start


def _narrow_bounds(op: Op, new: Resized) -> Op:
    operand, dim = tensor(op, 0), place(op, 1, "dim", len(tensor(op, 0).shape))
    start = int((new.kept(operand, dim) < _narrow_start(op, dim)).sum())
    return with_args(op, {2: start, 3: new.shape(op.result)[dim]})


def _select(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dim", len(operand))
    index = place(op, 2, "index", tensor(op, 0).shape[dim])
    eq.tie_all([axis for d, axis in enumerate(operand) if d != dim], result)
    _cut(eq, operand[dim], index, index + 1)


def _select_index(op: Op, new: Resized) -> Op:
    operand = tensor(op, 0)
    dim = place(op, 1, "dim", len(operand.shape))
    index = place(op, 2, "index", operand.shape[dim])
    return with_args(op, {2: int((new.kept(operand, dim) < index).sum())})


def _pad(eq: Equations, op: Op) -> None:
    """Padding adds parts beside the axis, which are frozen if the axis is frozen; negative padding cuts the axis."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    amounts = integers(op, 1, "pad")
    if len(amounts) > 2 * len(operand):
        raise UnsupportedCall(f"{len(amounts)} amounts of padding for {len(operand)} dimensions")
    for back in range(len(operand)):
        dim = len(operand) - 1 - back
        before, after = amounts[2 * back : 2 * back + 2] or (0, 0)
        if before == after == 0:
            eq.tie(operand[dim], result[dim])
        elif min(before, after) < 0:
            eq.freeze((operand[dim], result[dim]), "cut by negative padding")
        elif argument(op, 2, "mode", "constant") not in ("constant", 0.0) and op.packet == "aten.pad":
            eq.freeze((operand[dim], result[dim]), "padded with its own positions")
        else:
            edges = eq.axes.fresh(before), eq.axes.fresh(after)
            for edge in edges:
                eq.axes.follow(edge, operand[dim])
            eq.tie(eq.axes.concat((edges[0], operand[dim], edges[1])), result[dim])


def _pad_amounts(op: Op, new: Resized) -> Op:
    """Set the amounts of padding to the kept positions of the padding."""
    operand, amounts = tensor(op, 0), list(integers(op, 1, "pad"))
    for back in range(len(amounts) // 2):
        dim = len(operand.shape) - 1 - back
        before, after = amounts[2 * back : 2 * back + 2]
        if min(before, after) >= 0:
            kept, end = new.kept(op.result, dim), before + operand.shape[dim]
            amounts[2 * back : 2 * back + 2] = int((kept < before).sum()), int((kept >= end).sum())
    return with_args(op, {1: tuple(amounts)})


def index_layout(indices: Sequence[Arg], rank: int) -> tuple[list[int], int]:
    """Which dimensions an index addresses, and where in the result the indices' own dimensions stand.

    Args:
        indices: a tensor or None per leading dimension, as ``aten.index`` has them.
        rank: of the indexed tensor.

    Returns:
        The addressed dimensions and the position of the first dimension that comes from the indices.

    Raises:
        UnsupportedCall: for more indices than dimensions.
    """
    if len(indices) > rank:
        raise UnsupportedCall(f"{len(indices)} indices for {rank} dimensions")
    addressed = [d for d, index in enumerate(indices) if isinstance(index, Value)]
    together = addressed == list(range(addressed[0], addressed[-1] + 1)) if addressed else True
    return addressed, addressed[0] if addressed and together else 0


def _indices(op: Op) -> tuple[Arg, ...]:
    indices = argument(op, 1, "indices")
    if not isinstance(indices, tuple):
        raise UnsupportedCall(f"{op.target} argument indices is no list")
    return indices


def _has_mask(indices: Sequence[Arg]) -> bool:
    """Whether an index is a mask: it addresses as many dimensions as it has, at positions known only at run time."""
    return any(isinstance(i, Value) and i.dtype.name in ("b8", "u8") for i in indices)


def _index(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    indices = _indices(op)
    if _has_mask(indices):
        eq.freeze((*operand, *result, *(axis for value in op.operands for axis in eq.of(value))), "selects by a mask")
        return
    addressed, place = index_layout(indices, len(operand))
    for d in addressed:
        eq.address(operand[d], indices[d])
    passed = [axis for d, axis in enumerate(operand) if d not in addressed]
    width = len(result) - len(passed)
    eq.tie_all(passed, (*result[:place], *result[place + width :]))
    eq.broadcast([eq.of(i) for i in indices if isinstance(i, Value)], result[place : place + width])


def _index_select(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dim", len(operand))
    _pass_others(eq, operand, result, dim)
    eq.tie(eq.of(tensor(op, 2))[0], result[dim])
    eq.address(operand[dim], tensor(op, 2))
    eq.freeze([result[dim]], "addressed by an index")


def _gather(eq: Equations, op: Op) -> None:
    """gather and scatter: one dimension is addressed; the others are tied if the index has their full extent."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dim", len(operand))
    sides = [result, *(eq.of(value) for value in list(op.operands)[1:])]
    index = tensor(op, 2, "index")
    whole = [operand] if op.packet == "aten.gather" else [operand, result]
    for axes in whole:
        eq.address(axes[dim], index)
    eq.freeze((side[dim] for side in sides if side not in whole), "addressed by an index")
    for d in range(len(operand)):
        if d == dim:
            continue
        for side in sides:
            if eq.axes.size(side[d]) == eq.axes.size(operand[d]):
                eq.tie(operand[d], side[d])
            else:
                eq.freeze((operand[d], side[d]), "addressed in part by an index")


def _take_along(eq: Equations, op: Op) -> None:
    """As gather, but the other dimensions broadcast; without a dimension, positions count through the whole tensor."""
    operand, index, result = eq.of(tensor(op, 0)), eq.of(tensor(op, 1, "indices")), eq.of(op.result)
    if argument(op, 2, "dim") is None:
        eq.freeze((*operand, *index, *result), "addressed by an index")
        return
    dim = place(op, 2, "dim", len(operand))
    eq.address(operand[dim], tensor(op, 1, "indices"))
    eq.freeze((index[dim], result[dim]), "addressed by an index")
    for side in (operand, index):
        _pass_others(eq, side, result, dim)


def _windows(eq: Equations, op: Op) -> None:
    """unfold: overlapping windows of a dimension; the positions in a window become the last dimension."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dimension", len(operand))
    eq.freeze((operand[dim], result[dim], result[-1]), "overlapping windows of the axis")
    _pass_others(eq, operand, result[:-1], dim)


def _index_put(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    indices = _indices(op)
    eq.tie_all(operand, result)
    values = eq.of(tensor(op, 2))
    written = [axis for index in indices if isinstance(index, Value) for axis in eq.of(index)]
    addressed, place = index_layout(indices, len(operand))
    behind = [axis for d, axis in enumerate(operand) if d not in addressed][place:]
    count = len(behind) if len(values) >= len(behind) and not _has_mask(indices) else 0
    eq.broadcast([values[len(values) - count :]], behind[len(behind) - count :])
    passed = set(behind[len(behind) - count :])
    stays = [axis for axis in (*operand, *values[: len(values) - count]) if axis not in passed]
    eq.freeze((*stays, *written), "written by an index")


_SPLIT = _split()

SLICING_RULES = {
    "aten.cat": Rule(_cat, text="concat of the operands' dimensions"),
    "aten.concat": Rule(_cat, text="concat of the operands' dimensions"),
    "aten.concatenate": Rule(_cat, text="concat of the operands' dimensions"),
    "aten.stack": Rule(_stack, text="a new dimension of single positions"),
    "aten.unbind": Rule(_unbind, text="a dimension of single positions goes"),
    "aten.split": _SPLIT,
    "aten.split_with_sizes": _SPLIT,
    "aten.chunk": _SPLIT,
    "aten.tensor_split": _SPLIT,
    "aten.slice": Rule(_slice, _slice_bounds, text="n = (before + part + after); step k: (part * k), k frozen"),
    "aten.narrow": Rule(_narrow, _narrow_bounds, text="n = (before + part + after)"),
    "aten.select": Rule(_select, _select_index, text="n = (before + 1 + after)"),
    "aten.constant_pad_nd": Rule(_pad, _pad_amounts, text="n -> (before + n + after)"),
    "aten.pad": Rule(_pad, _pad_amounts, text="n -> (before + n + after)"),
    "aten.index": Rule(_index, text="freezes the addressed dimensions, passes the others"),
    "aten.index_select": Rule(_index_select, text="freezes the addressed dimension, passes the others"),
    "aten.gather": Rule(_gather, text="freezes the addressed dimension"),
    "aten.take_along_dim": Rule(_take_along, text="freezes the addressed dimension, the others broadcast"),
    "aten.scatter": Rule(_gather, text="freezes the addressed dimension"),
    "aten.scatter_add": Rule(_gather, text="freezes the addressed dimension"),
    "aten.scatter_reduce": Rule(_gather, text="freezes the addressed dimension"),
    "aten.unfold": Rule(_windows, text="... n ... -> ... windows ... size, all three frozen"),
    "aten.index_put": Rule(_index_put, text="freezes the addressed dimensions"),
}
