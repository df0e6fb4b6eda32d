"""Reductions, normalisations and softmax."""

from __future__ import annotations

import math

from ..axes import AxisId
from ..errors import UnsupportedCall
from ..graph import Op, Value
from .arguments import argument, integer, integers, place, tensor, with_args, wrapped
from .rule import Equations, Resized, Rule

NORMALISED = "normalised"
"""Mark of atoms that a normalisation runs over: removing their units is not the same as zeroing them."""

GROUPS = "the number of groups of a normalisation"

FOURIER = "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn"
"""Fourier transforms."""


def _dims(op: Op, rank: int, position: int = 1) -> list[int]:
    dims = argument(op, position, "dim")
    if dims is None or dims == () or isinstance(dims, bool):
        return list(range(rank))
    listed = dims if isinstance(dims, tuple) else (dims,)
    return sorted(wrapped(op, d, "dim", rank) for d in listed if isinstance(d, int))


def _reduction(mark: str | None, position: int = 1) -> Rule:
    """Reductions. If zero is not neutral, removing a unit is not the same as zeroing it, and the axis gets a mark."""

    def couple(eq: Equations, op: Op) -> None:
        operand = eq.of(tensor(op, 0))
        reduced = _dims(op, len(operand), position)
        kept = [axis for dim, axis in enumerate(operand) if dim not in reduced]
        for result in op.made:
            axes = eq.of(result)
            if len(axes) == len(operand):
                axes = tuple(axis for dim, axis in enumerate(axes) if dim not in reduced)
            eq.tie_all(kept, axes)
        if mark:
            eq.mark((operand[d] for d in reduced), mark)

    return Rule(couple, text="reduces the dimensions it names" + (", marks them normalised" if mark else ""))


def _extremum(eq: Equations, op: Op) -> None:
    """max and min: element-wise for two tensors; for one, over a dimension (with positions) or over all of it."""
    if len(list(op.operands)) > 1:
        eq.broadcast([eq.of(value) for value in op.operands], eq.of(op.result))
    elif len(op.results) > 1:
        _position(eq, op)
    else:
        _reduction(NORMALISED).couple(eq, op)


def _position(eq: Equations, op: Op) -> None:
    """The result holds positions of the reduced dimensions."""
    operand = eq.of(tensor(op, 0))
    _reduction(None).couple(eq, op)
    eq.freeze((operand[d] for d in _dims(op, len(operand))), "positions of the axis are counted")


_POSITIONS = Rule(_position, text="freezes the reduced dimensions, of which it gives positions")


def _norm(eq: Equations, op: Op) -> None:
    """A vector norm; zero is neutral, except for a negative order."""
    order = argument(op, 1, "ord", 2)
    negative = isinstance(order, int | float) and order < 0
    _reduction(NORMALISED if negative else None, 2).couple(eq, op)


def _weight_norm(eq: Equations, op: Op) -> None:
    """``v * g / |v|`` over all dimensions but one; a zeroed unit of that one would give 0 / 0."""
    direction, gain, result = eq.of(tensor(op, 0)), eq.of(tensor(op, 1)), eq.of(op.result)
    eq.tie_all(direction, result)
    eq.broadcast([gain], result)
    eq.mark([direction[place(op, 2, "dim", len(direction))]], NORMALISED)


def _fourier(eq: Equations, op: Op) -> None:
    """A transform mixes all positions of its dimensions; a half spectrum has fewer positions. Without the argument, the
    dimensions are the last one, the last two or all, depending on the operator's name."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    count = {"2": 2, "n": len(operand)}.get(op.packet[-1], 1)
    dims = argument(op, 1 if op.packet.startswith("aten._fft") else 2, "dim")
    dims = tuple(range(-count, 0)) if dims is None else dims
    listed = dims if isinstance(dims, tuple) else (dims,)
    transformed = {wrapped(op, d, "dim", len(operand)) for d in listed if isinstance(d, int)}
    for d, (a, b) in enumerate(zip(operand, result, strict=True)):
        if d in transformed:
            eq.freeze((a, b), "a Fourier transform mixes the positions")
        else:
            eq.tie(a, b)


def _gated(eq: Equations, op: Op) -> None:
    """glu: the first half of the dimension times the sigmoid of the second."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    dim = place(op, 1, "dim", len(operand), -1)
    eq.tie_all(operand[:dim] + operand[dim + 1 :], result[:dim] + result[dim + 1 :])
    eq.tie(operand[dim], eq.axes.concat((result[dim], result[dim])))


def _along(reason: str | None, mark: str | None, position: int = 1, default: int = -1) -> Rule:
    """Operators that act along one dimension and keep all other extents."""

    def couple(eq: Equations, op: Op) -> None:
        operand = eq.of(tensor(op, 0))
        dim = place(op, position, "dim", len(operand), default)
        for result in op.made:
            for d, (a, b) in enumerate(zip(operand, eq.of(result), strict=True)):
                if d != dim or result.shape[d] == eq.axes.size(a):
                    eq.tie(a, b)
                elif reason:
                    eq.freeze([b], reason)
        if reason:
            eq.freeze([operand[dim]], reason)
        if mark:
            eq.mark([operand[dim]], mark)

    return Rule(couple, text=f"freezes the dimension: {reason}" if reason else "acts along a dimension, marks it")


def _softmax(eq: Equations, op: Op) -> None:
    operand = eq.of(tensor(op, 0))
    eq.tie_all(operand, eq.of(op.result))
    dim = place(op, 1, "dim", len(operand), -1)
    eq.mark([operand[dim]], NORMALISED)
    if len(operand) > 2 and dim == len(operand) - 1:
        # attention scores: batch, heads, perhaps windows, queries, keys; or batch * heads, queries, keys
        eq.mark(operand[1:-2] or operand[:1], "heads")


def _norm_over_last(weights: tuple[int, ...]) -> Rule:
    """layer_norm and similar operators: normalise the last dimensions, which the weights have too."""

    def couple(eq: Equations, op: Op) -> None:
        operand = eq.of(tensor(op, 0))
        for result in op.made:  # the other results are mean and deviation, with extent 1 in normalised dimensions
            eq.tie_all(operand, eq.of(result))
        shape = integers(op, 1, "normalized_shape")
        for position in weights:
            weight = argument(op, position, "")
            if isinstance(weight, Value):
                eq.broadcast([eq.of(weight)], operand)
        eq.mark(operand[len(operand) - len(shape) :], NORMALISED)

    def resize(op: Op, new: Resized) -> Op:
        shape = integers(op, 1, "normalized_shape")
        return with_args(op, {1: new.shape(tensor(op, 0))[-len(shape) :]})

    return Rule(couple, resize, text="normalises the last dimensions; weights have them too")


def _per_channel(eq: Equations, op: Op) -> None:
    """All operands but the first have one number per channel, or one in total."""
    operand = eq.of(tensor(op, 0))
    eq.tie_all(operand, eq.of(op.result))
    for weight in list(op.operands)[1:]:
        eq.broadcast([eq.of(weight)], operand[1:2])


def _batch_norm(eq: Equations, op: Op) -> None:
    _per_channel(eq, op)
    operand = eq.of(tensor(op, 0))
    if op.packet == "aten.batch_norm" and argument(op, 5, "training", False):
        eq.mark((operand[0], *operand[2:]), NORMALISED)


def _instance_norm(eq: Equations, op: Op) -> None:
    _per_channel(eq, op)
    if argument(op, 5, "use_input_stats", True):
        eq.mark(eq.of(tensor(op, 0))[2:], NORMALISED)


def _prelu(eq: Equations, op: Op) -> None:
    operand, slopes = tensor(op, 0), tensor(op, 1)
    if len(operand.shape) > 1:
        _per_channel(eq, op)
    else:
        if slopes.shape not in ((), (1,)):
            raise UnsupportedCall(f"{slopes.shape[0]} slopes for one dimension")
        eq.tie_all(eq.of(operand), eq.of(op.result))


def _grouped(eq: Equations, op: Op) -> tuple[AxisId, AxisId]:
    channels = eq.of(tensor(op, 0))[1]
    groups = integer(op, 1, "num_groups", 1)
    outer = eq.axes.fresh(groups)
    inner = eq.axes.fresh(eq.axes.size(channels) // groups)
    eq.tie(channels, eq.axes.product((outer, inner)))
    return outer, inner


def _group_norm(eq: Equations, op: Op) -> None:
    operand = eq.of(tensor(op, 0))
    outer, inner = _grouped(eq, op)
    eq.tie_all(operand, eq.of(op.result))
    for weight in list(op.operands)[1:]:
        eq.tie(eq.of(weight)[0], operand[1])
    eq.freeze([outer], GROUPS)
    eq.mark((inner, *operand[2:]), NORMALISED)


def _native_group_norm(eq: Equations, op: Op) -> None:
    """As a group norm; also returns one mean and one deviation per sample and group."""
    operand, weights = eq.of(tensor(op, 0)), list(op.operands)[1:]
    groups = integer(op, 6, "group")
    outer, inner = eq.axes.fresh(groups), eq.axes.fresh(eq.axes.size(operand[1]) // groups)
    eq.tie(operand[1], eq.axes.product((outer, inner)))
    for axes, value in zip((operand, operand[:1], operand[:1]), op.made, strict=True):
        eq.tie_all(axes, eq.of(value)[: len(axes)])
        eq.freeze(eq.of(value)[len(axes) :], GROUPS)
    for weight in weights:
        eq.tie(eq.of(weight)[0], operand[1])
    eq.freeze([outer], GROUPS)
    eq.mark((inner, *operand[2:]), NORMALISED)


def _extents(op: Op, new: Resized) -> Op:
    samples, channels, *positions = new.shape(tensor(op, 0))
    return with_args(op, {3: samples, 4: channels, 5: math.prod(positions)})


def _native_batch_norm(eq: Equations, op: Op) -> None:
    """As a batch norm; also returns one mean and one deviation per channel, or empty tensors."""
    operand = eq.of(tensor(op, 0))
    channels = operand[1:2]
    result, *others = op.made
    for axes in (eq.of(value) for value in (*list(op.operands)[1:], *others)):
        if axes and eq.axes.size(axes[0]) == eq.axes.size(channels[0]):
            eq.tie_all(axes, channels)
    eq.tie_all(operand, eq.of(result))
    if next(arg for arg in op.args if isinstance(arg, bool)):
        eq.mark((operand[0], *operand[2:]), NORMALISED)


REDUCE_RULES = {
    **{f"aten.{name}": _reduction(None) for name in ("sum", "nansum", "any")},
    **{
        f"aten.{name}": _reduction(NORMALISED)
        for name in ("mean", "var", "std", "var_mean", "std_mean", "logsumexp", "prod", "amax", "amin", "all")
    },
    **{f"aten.{name}": _POSITIONS for name in ("argmax", "argmin")},
    **{
        f"aten.{name}": Rule(_extremum, text="two operands: pointwise; one: reduces, positions freeze the dimension")
        for name in ("max", "min")
    },
    **{
        f"aten.{name}": Rule(_norm, text="reduces the dimensions it names, a negative order marks them normalised")
        for name in ("linalg_vector_norm", "linalg_norm", "norm")
    },
    "aten._weight_norm": Rule(_weight_norm, text="..., ... -> ..., marks the dimension that keeps its norm normalised"),
    **{f"aten.fft_{name}": Rule(_fourier, text="freezes the transformed dimensions") for name in FOURIER.split()},
    **{
        f"aten._fft_{name}": Rule(_fourier, text="freezes the transformed dimensions") for name in ("c2c", "c2r", "r2c")
    },
    **{
        f"aten.{name}": Rule(_softmax, text="same shape, marks the dimension normalised")
        for name in ("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
    },
    "aten.layer_norm": _norm_over_last((2, 3)),
    "aten.native_layer_norm": _norm_over_last((2, 3)),
    "aten.rms_norm": _norm_over_last((2,)),
    "aten.batch_norm": Rule(_batch_norm, text="n c ..., c?, c?, c?, c? -> n c ..."),
    "aten._native_batch_norm_legit_no_training": Rule(_batch_norm, text="n c ..., c?, c?, c?, c? -> n c ..."),
    "aten.instance_norm": Rule(_instance_norm, text="n c ..., c?, c?, c?, c? -> n c ...; marks ... normalised"),
    "aten.prelu": Rule(_prelu, text="n c ..., c -> n c ..."),
    "aten.group_norm": Rule(_group_norm, text="n (g i) ..., (g i)?, (g i)? -> n (g i) ...; i is normalised, g frozen"),
    "aten.native_group_norm": Rule(
        _native_group_norm,
        _extents,
        text="n (g i) ..., (g i)?, (g i)? -> n (g i) ..., n g, n g; i is normalised, g frozen",
    ),
    "aten._native_batch_norm_legit": Rule(_native_batch_norm, text="n c ..., c?, c?, c?, c? -> n c ..., c, c"),
    **{
        f"aten.{name}": _along("accumulates along the axis", None)
        for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
    },
    **{f"aten.{name}": _along("orders the axis", None) for name in ("sort", "argsort")},
    "aten.glu": Rule(_gated, text="(r + r) -> r"),
}
