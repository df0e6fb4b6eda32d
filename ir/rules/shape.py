"""Operators that only rearrange, split or merge dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ShapeError
from ..graph import Arg, DType, Op, Value
from .arguments import argument, integers, place, tensor, with_args, wrapped
from .rule import Equations, Resized, Rule


def blocks(left: Sequence[int], right: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two row-major shapes into the shortest runs of dimensions with equal products, without extents of 1.

    Args:
        left, right: shapes with the same number of elements.

    Returns:
        Pairs of lists of dimensions whose extents have equal products.
    """
    a = [(d, n) for d, n in enumerate(left) if n != 1]
    b = [(d, n) for d, n in enumerate(right) if n != 1]
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        run, other = [a[i][0]], [b[j][0]]
        have, want = a[i][1], b[j][1]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                run.append(a[i][0])
                have *= a[i][1]
                i += 1
            else:
                other.append(b[j][0])
                want *= b[j][1]
                j += 1
        found.append((run, other))
    return found


def _reshape(eq: Equations, op: Op) -> None:
    operand, result = tensor(op, 0), op.result
    left, right = eq.of(operand), eq.of(result)
    if len(op.args) > 1 and isinstance(op.args[1], DType):
        _reinterpret(eq, op)
        return
    if 0 in operand.shape:
        eq.freeze((*left, *right), "reshapes an empty tensor")
        return
    elements = math.prod(operand.shape), math.prod(result.shape)
    if elements[0] != elements[1]:
        raise ShapeError(f"{elements[0]} elements cannot be {elements[1]}")
    for run, other in blocks(operand.shape, result.shape):
        eq.tie(eq.axes.product(left[d] for d in run), eq.axes.product(right[d] for d in other))


def _reinterpret(eq: Equations, op: Op) -> None:
    """``view.dtype``: reads the same bytes as another dtype; the last extent changes with the element size."""
    left, right = eq.of(tensor(op, 0)), eq.of(op.result)
    if tensor(op, 0).shape == op.result.shape:
        eq.tie_all(left, right)
        return
    eq.tie_all(left[:-1], right[:-1])
    eq.freeze((left[-1], right[-1]), "the bytes of several elements")


def _view_as(eq: Equations, op: Op) -> None:
    eq.tie_all(eq.of(tensor(op, 1)), eq.of(op.result))
    _reshape(eq, op)


def _to_new_shape(op: Op, new: Resized) -> Op:
    """Rewrite the sizes, the second argument; ``view.dtype`` has none."""
    return op if isinstance(op.args[1], DType) else with_args(op, {1: new.shape(op.result)})


def _as_reshape(op: Op, new: Resized) -> Op:
    """Replace by a reshape: a squeeze would also drop a dimension with one unit left, and an alias has strides."""
    return Op("aten.reshape", (op.args[0], new.shape(op.result)), {}, op.results, op.source)


def _unflatten_sizes(op: Op, new: Resized) -> Op:
    dim = place(op, 1, "dim", len(tensor(op, 0).shape))
    sizes = integers(op, 2, "sizes")
    return with_args(op, {2: new.shape(op.result)[dim : dim + len(sizes)]})


def _integers(arg: Arg) -> list[int]:
    return [item for item in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(item, int)]


def _permutation(op: Op) -> list[int]:
    rank = len(tensor(op, 0).shape)
    order = list(range(rank))
    if op.packet in ("aten.t", "aten.numpy_T"):
        return order[::-1]
    if op.packet in ("aten.mT", "aten.mH", "aten.adjoint"):
        return [*order[:-2], order[-1], order[-2]]
    if op.packet in ("aten.transpose", "aten.swapaxes", "aten.swapdims"):
        a, b = place(op, 1, "dim0", rank), place(op, 2, "dim1", rank)
        order[a], order[b] = order[b], order[a]
        return order
    given = op.args[1]
    if op.packet == "aten.permute":
        return [wrapped(op, d, "dims", rank) for d in _integers(given)]
    target = op.args[2]
    pairs = zip(_integers(given), _integers(target), strict=True)
    moved = {wrapped(op, p, "destination", rank): wrapped(op, s, "source", rank) for s, p in pairs}
    rest = iter([d for d in order if d not in moved.values()])
    return [moved[d] if d in moved else next(rest) for d in order]


def source_dims(op: Op) -> list[int] | None:
    """The operand's dimension of every dimension of the result of an operator that only permutes dimensions, casts or
    copies; None for any other operator.
    """
    if SHAPE_RULES.get(op.packet) is _PERMUTE:
        return _permutation(op)
    return list(range(len(op.result.shape))) if op.packet in _COPIES else None


def _permute(eq: Equations, op: Op) -> None:
    operand = eq.of(tensor(op, 0))
    eq.tie_all((operand[d] for d in _permutation(op)), eq.of(op.result))


def _expand(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    eq.broadcast([operand], result)


def _broadcast_all(eq: Equations, op: Op) -> None:
    """Every operand gets the broadcast shape of all of them."""
    for result in op.made:
        eq.broadcast([eq.of(value) for value in op.operands], eq.of(result))


def _repeat(eq: Equations, op: Op) -> None:
    """Repeats the whole axis: index ``r * n + i`` of the result is index ``i`` of the operand."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    padded = (0,) * (len(result) - len(operand)) + operand
    for axis, made in zip(padded, result, strict=True):
        times = eq.axes.size(made) // eq.axes.size(axis)
        eq.tie(made, eq.axes.product((eq.axes.fresh(times), axis)))


def _repeat_counts(op: Op, new: Resized) -> Op:
    old, made = new.shape(tensor(op, 0)), new.shape(op.result)
    padded = (1,) * (len(made) - len(old)) + old
    return with_args(op, {1: tuple(m // o for m, o in zip(made, padded, strict=True))})


def _interleave(eq: Equations, op: Op) -> None:
    """Repeats every position: index ``i * times + r`` of the result is index ``i`` of the operand."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    times, dim = op.args[1], argument(op, 2, "dim")
    if not isinstance(times, int) or not isinstance(dim, int):
        eq.freeze((*operand, *result), "repeats by a computed count")
        return
    dim = place(op, 2, "dim", len(operand))
    for d, (axis, made) in enumerate(zip(operand, result, strict=True)):
        eq.tie(eq.axes.product((axis, eq.axes.fresh(times))) if d == dim else axis, made)


def _interleave_count(op: Op, new: Resized) -> Op:
    if not isinstance(argument(op, 2, "dim"), int):
        return op
    dim = place(op, 2, "dim", len(tensor(op, 0).shape))
    extent = new.shape(op.result)[dim]
    total: dict[str, Arg] = {"output_size": extent} if "output_size" in op.kwargs else {}
    return with_args(op, {1: extent // new.shape(tensor(op, 0))[dim]}, total)


def _reversed(eq: Equations, op: Op) -> None:
    """flip and roll: the reordered dimensions are frozen, the others are tied."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dims = op.args[1] if op.packet == "aten.flip" else argument(op, 2, "dims", ())
    moved = {wrapped(op, d, "dims", len(operand)) for d in _integers(dims)}
    eq.freeze((operand[d] for d in moved or range(len(operand))), "moves positions of the axis")
    eq.tie_all(operand, result)


def _complex_view(eq: Equations, op: Op) -> None:
    """A last dimension of 2 holds the real and the imaginary part."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    count = min(len(operand), len(result))
    eq.tie_all(operand[:count], result[:count])
    longer: Value = tensor(op, 0) if len(operand) > len(result) else op.result
    eq.freeze(eq.of(longer)[-1:], "real and imaginary part")


_SAME_ELEMENTS = Rule(_reshape, text="finest runs of dimensions with equal products: product = product")
_WITH_SHAPE = Rule(_reshape, _to_new_shape, text=_SAME_ELEMENTS.text)
_PERMUTE = Rule(_permute, text="permutes dimensions")
_COPIES = frozenset({
    "aten._to_copy", "aten.to", "aten.alias", "aten.clone", "aten.contiguous", "aten.detach", "aten.lift_fresh",
})  # fmt: skip

SHAPE_RULES = {
    **{f"aten.{name}": _WITH_SHAPE for name in ("view", "reshape", "_unsafe_view")},
    **{f"aten.{name}": _SAME_ELEMENTS for name in ("flatten", "unsqueeze", "ravel")},
    **{f"aten.{name}": Rule(_reshape, _as_reshape, text=_SAME_ELEMENTS.text) for name in ("squeeze", "_reshape_alias")},
    "aten.reshape_as": Rule(_view_as, text=_SAME_ELEMENTS.text + "; the second operand has the result's dimensions"),
    "aten.view_as": Rule(_view_as, text=_SAME_ELEMENTS.text + "; the second operand has the result's dimensions"),
    "aten.unflatten": Rule(_reshape, _unflatten_sizes, text=_SAME_ELEMENTS.text),
    **{
        f"aten.{name}": _PERMUTE
        for name in (
            "permute",
            "transpose",
            "t",
            "mT",
            "mH",
            "numpy_T",
            "adjoint",
            "movedim",
            "moveaxis",
            "swapaxes",
            "swapdims",
        )
    },
    "aten.expand": Rule(_expand, _to_new_shape, text="... -> ...; from 1 to n is a new atom"),
    "aten.expand_as": Rule(
        lambda eq, op: eq.broadcast([eq.of(v) for v in op.operands], eq.of(op.result)), text="..., ... -> ..."
    ),
    "aten.broadcast_to": Rule(_expand, _to_new_shape, text="... -> ..."),
    "aten.broadcast_tensors": Rule(_broadcast_all, text="..., ... -> ..., ..."),
    "aten.repeat": Rule(_repeat, _repeat_counts, text="n -> (times * n)"),
    "aten.tile": Rule(_repeat, _repeat_counts, text="n -> (times * n)"),
    "aten.repeat_interleave": Rule(_interleave, _interleave_count, text="n -> (n * times)"),
    "aten.flip": Rule(_reversed, text="freezes the flipped dimensions"),
    "aten.roll": Rule(_reversed, text="freezes the rolled dimensions"),
    "aten.view_as_real": Rule(_complex_view, text="... -> ... 2"),
    "aten.view_as_complex": Rule(_complex_view, text="... 2 -> ..."),
}
