"""Convolutions, pooling and resampling over spatial positions."""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph import Arg, Op, Value
from .arguments import argument, integer, integers, tensor, with_args
from .contraction import Contraction, Product
from .rule import Equations, Resized, Rule

SPATIAL = "spatial positions"


def _groups_position(op: Op) -> int:
    """Position of the argument ``groups``: ``aten.convolution`` has two more arguments before it."""
    return 8 if op.packet == "aten.convolution" else 6


def _is_transposed(op: Op) -> bool:
    flag: Arg = argument(op, 6, "transposed", False) if op.packet == "aten.convolution" else False
    return bool(flag) or op.packet.startswith("aten.conv_transpose")


def _convolution(eq: Equations, op: Op) -> None:
    """``n (g i) ..., (g o) i ..., (g o)? -> n (g o) ...``; transposed: the weight is ``(g i) o ...``."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    weight, bias = eq.of(tensor(op, 1)), argument(op, 2, "bias")
    groups = integer(op, _groups_position(op), "groups", 1)
    spatial = len(weight) - 2
    channel = len(operand) - spatial - 1
    group = eq.axes.fresh(groups)
    rows, columns = (weight[1], weight[0]) if _is_transposed(op) else (weight[0], weight[1])
    if _is_transposed(op):
        eq.tie(operand[channel], columns)
        inner = eq.axes.fresh(eq.axes.size(columns) // groups)
        eq.tie(columns, eq.axes.product((group, inner)))
        eq.tie(result[channel], eq.axes.product((group, rows)))
    else:
        eq.tie(operand[channel], eq.axes.product((group, columns)))
        outer = eq.axes.fresh(eq.axes.size(rows) // groups)
        eq.tie(rows, eq.axes.product((group, outer)))
        eq.tie(rows, result[channel])
    if isinstance(bias, Value):
        eq.tie(eq.of(bias)[0], result[channel])
    eq.tie_all(operand[:channel], result[:channel])
    eq.freeze((*operand[channel + 1 :], *result[channel + 1 :], *weight[2:]), SPATIAL)


def _products(op: Op) -> tuple[Product, ...]:
    """``p`` are positions that the weight is applied at, ``w`` those of the weight; the input holds windows of both.

    Transposed, the result holds the windows.
    """
    operand, weight, result = tensor(op, 0), tensor(op, 1, "weight"), op.result
    groups = integer(op, _groups_position(op), "groups", 1)
    spatial = range(len(weight.shape) - 2)
    samples = ("n",) * (len(operand.shape) - len(spatial) - 1)
    places, kernel = tuple(f"p{d}" for d in spatial), tuple(f"w{d}" for d in spatial)
    windows = tuple(f"p{d} w{d}" for d in spatial)
    inner, outer = ("g i", "g o") if groups > 1 else ("i", "o")
    if not _is_transposed(op):
        factors = (operand, (*samples, inner, *windows)), (weight, (outer, "i", *kernel))
        return (Product(factors, (result, (*samples, outer, *places))),)
    rows = "g" if weight.shape[0] == groups else inner  # one channel for each group: the weight's are the groups
    factors = (operand, (*samples, rows, *places)), (weight, (rows, "o", *kernel))
    return (Product(factors, (result, (*samples, outer, *windows))),)


def _macs(op: Op) -> int:
    """Each result element reads one window of its group's channels; if transposed, each operand element adds one."""
    elements = tensor(op, 0) if _is_transposed(op) else op.result
    return math.prod(elements.shape) * math.prod(tensor(op, 1, "weight").shape[1:])


def _groups(op: Op, new: Resized) -> Op:
    """The new number of groups: channels of the operand divided by channels of one group."""
    position = _groups_position(op)
    if integer(op, position, "groups", 1) == 1:
        return op
    weight, operand = new.shape(tensor(op, 1)), new.shape(tensor(op, 0))
    channel = len(operand) - (len(weight) - 2) - 1
    groups = (new.shape(op.result) if _is_transposed(op) else operand)[channel] // weight[1]
    return with_args(op, {position: groups}) if position < len(op.args) else with_args(op, {}, {"groups": groups})


def _passes(op: Op, place: int, spatial: int) -> bool:
    """Whether the windows of a pool are single positions along a spatial dimension, and all of them."""

    def at(position: int, name: str, default: int) -> Arg:
        given = argument(op, position, name, default)
        listed = given if isinstance(given, tuple) else (given,)
        return listed[place] if len(listed) == spatial else listed[0] if listed else default

    pools = op.packet.startswith(("aten.avg_pool", "aten.max_pool"))
    return pools and at(1, "kernel_size", 1) == 1 and at(2, "stride", 1) == 1 and at(3, "padding", 0) == 0


def _pool(spatial: int) -> Rule:
    def couple(eq: Equations, op: Op) -> None:
        operand = eq.of(tensor(op, 0))
        passing = [place for place in range(spatial) if _passes(op, place, spatial)]
        for value in op.made:
            result = eq.of(value)
            eq.tie_all(operand[:-spatial], result[:-spatial])
            for place, (a, b) in enumerate(zip(operand[-spatial:], result[-spatial:], strict=True)):
                if place in passing and len(op.results) == 1:  # the second result counts positions
                    eq.tie(a, b)
                else:
                    eq.freeze((a, b), SPATIAL)

    return Rule(couple, text="channels pass, spatial positions are frozen unless each is taken by itself")


def _unfold(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    eq.freeze((*operand[-2:], *result[-1:]), SPATIAL)
    eq.tie_all(operand[:-3], result[:-2])
    window = eq.axes.fresh(eq.axes.size(result[-2]) // eq.axes.size(operand[-3]))
    eq.freeze([window], SPATIAL)
    eq.tie(eq.axes.product((operand[-3], window)), result[-2])


def _fold(eq: Equations, op: Op) -> None:
    """col2im: adds up overlapping windows; the inverse of ``_unfold``."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    eq.freeze((operand[-1], *result[-2:]), SPATIAL)
    eq.tie_all(operand[:-2], result[:-3])
    window = eq.axes.fresh(eq.axes.size(operand[-2]) // eq.axes.size(result[-3]))
    eq.freeze([window], SPATIAL)
    eq.tie(operand[-2], eq.axes.product((result[-3], window)))


def _grid_sample(eq: Equations, op: Op) -> None:
    """``n c h w, n y x 2 -> n c y x``; only channels are tied."""
    operand, grid, result = eq.of(tensor(op, 0)), eq.of(tensor(op, 1)), eq.of(op.result)
    eq.tie_all((operand[0], operand[1], operand[0]), (result[0], result[1], grid[0]))
    eq.freeze((*operand[2:], *grid[1:], *result[2:]), SPATIAL)


def _affine_grid(eq: Equations, op: Op) -> None:
    """``n i j -> n y x i``: where each position of a result of the given size reads; only samples are tied."""
    maps, result = eq.of(tensor(op, 0)), eq.of(op.result)
    eq.tie(maps[0], result[0])
    eq.freeze((*maps[1:], *result[1:]), SPATIAL)


def _affine_grid_size(op: Op, new: Resized) -> Op:
    return with_args(op, {1: (new.shape(op.result)[0], *integers(op, 1, "size")[1:])})


def _pixel_shuffle(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    block = eq.axes.fresh(integer(op, 1, "factor") ** 2)
    eq.freeze([block, *operand[-2:], *result[-2:]], SPATIAL)
    few, many = (result, operand) if op.packet == "aten.pixel_shuffle" else (operand, result)
    eq.tie(many[-3], eq.axes.product((few[-3], block)))
    eq.tie_all(operand[:-3], result[:-3])


def _channel_shuffle(eq: Equations, op: Op) -> None:
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    groups = eq.axes.fresh(integer(op, 1, "groups"))
    inner = eq.axes.fresh(eq.axes.size(operand[1]) // eq.axes.size(groups))
    eq.freeze([groups], "the groups of a channel shuffle")
    eq.tie(operand[1], eq.axes.product((groups, inner)))
    eq.tie(result[1], eq.axes.product((inner, groups)))
    eq.tie_all((operand[0], *operand[2:]), (result[0], *result[2:]))


_PLAIN = Contraction(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    _products,
    weight="weight",
    input="input",
    bias="bias",
    summed=1,
    windows=True,
    plain={"groups": 1},
    count=_macs,
)
_TRANSPOSED = replace(
    _PLAIN,
    arguments=("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    summed=None,  # the first, unless the weight has one channel for each group
    unrecorded="an output sums over windows that overlap: outputs are no rows of one linear map",
)
_GENERIC = replace(
    _PLAIN,
    arguments=(
        "input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups",
    ),
    summed=None,  # the second, or as in the transposed ones
    unrecorded="modules call the operators for one, two and three dimensions",
)  # fmt: skip


def _rule(contracts: Contraction) -> Rule:
    text = "n (g i) ..., (g o) i ..., (g o)? -> n (g o) ..."
    return Rule(_convolution, _groups, text=text, contracts=contracts)


_POOLS = {
    1: "avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d "
    "reflection_pad1d replication_pad1d",
    2: "avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "_upsample_nearest_exact2d reflection_pad2d replication_pad2d",
    3: "avg_pool3d max_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
    "reflection_pad3d replication_pad3d upsample_nearest3d upsample_trilinear3d",
}

CONVOLUTION_RULES = {
    "aten.convolution": _rule(_GENERIC),
    **{f"aten.conv{n}d": _rule(_PLAIN) for n in (1, 2, 3)},
    **{f"aten.conv_transpose{n}d": _rule(_TRANSPOSED) for n in (1, 2, 3)},
    **{f"aten.{name}": _pool(spatial) for spatial, names in _POOLS.items() for name in names.split()},
    **{
        f"aten.{name}": Rule(_grid_sample, text="n c h w, n y x 2 -> n c y x")
        for name in ("grid_sampler", "grid_sampler_2d")
    },
    "aten.affine_grid_generator": Rule(_affine_grid, _affine_grid_size, text="n i j -> n y x i, all but n frozen"),
    "aten.im2col": Rule(_unfold, text="n c h w -> n (c * window) positions"),
    "aten.col2im": Rule(_fold, text="n (c * window) positions -> n c h w"),
    "aten.pixel_shuffle": Rule(_pixel_shuffle, text="n (c * block) h w -> n c h w"),
    "aten.pixel_unshuffle": Rule(_pixel_shuffle, text="n c h w -> n (c * block) h w"),
    "aten.channel_shuffle": Rule(_channel_shuffle, text="n (g * i) ... -> n (i * g) ..."),
}
