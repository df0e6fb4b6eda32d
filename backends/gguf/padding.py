"""Zeros in the place of what was removed, so that all layers have the same widths: exact, and as large as before.

A query head of zeros looks at all positions alike, and its zero columns of the output projection drop what it sees. So
heads can be added at the end of every group, and groups at the end; channels of a feed-forward network anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...ir.errors import RequestError
from .architectures import OTHER_FORMAT, Architecture
from .blocks import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE, BlockWidths, LayerTensors, ModelTensors


def pad(blocks: ModelTensors, row: Architecture, name: str) -> int:
    """Give all layers the same widths, and the heads that the code of llama.cpp expects, in place.

    Returns:
        The number of zeros that were added.

    Raises:
        RequestError: zeros would change what the model computes, or no number of heads fits.
    """
    present = [widths for widths in blocks.widths if widths.heads]
    if not present:
        raise RequestError(f"{name} has no attention left", OTHER_FORMAT)
    kv_heads, group = _heads(blocks, row, present, name)
    size, value = present[0].key, present[0].value
    target = BlockWidths(kv_heads * group, kv_heads, size, value, max(widths.ffn for widths in blocks.widths))
    if any((widths.key, widths.value) != (size, value) for widths in present):
        raise RequestError(f"{name} has heads of different sizes, which zeros do not make equal", OTHER_FORMAT)
    held = {part for layer in blocks.layers for part in layer}
    across = next((norm for norm in row.norms_across_heads if f"{norm}.weight" in held), None)
    if across and any((widths.heads, widths.kv_heads) != (target.heads, kv_heads) for widths in present):
        raise RequestError(
            f"{name} normalises across all heads together ({across}), so zeros would change what stays",
            f"remove no heads; or {OTHER_FORMAT}",
        )
    before = sum(tensor.numel() for _, tensor in blocks.named())
    for layer, widths in zip(blocks.layers, blocks.widths, strict=True):
        if widths.heads:
            _pad_attention(layer, widths, target)
        if widths.ffn:
            _pad_ffn(layer, target.ffn)
    _fill_absent(blocks)
    blocks.widths = [target] * len(blocks.layers)
    return sum(tensor.numel() for _, tensor in blocks.named()) - before


def _heads(blocks: ModelTensors, row: Architecture, present: Sequence[BlockWidths], name: str) -> tuple[int, int]:
    """The number of heads of keys, and of query heads for each: the fewest of both that fit."""
    least = max(widths.kv_heads for widths in present)
    group = max(widths.heads // widths.kv_heads for widths in present)
    if not row.square:
        return least, group
    size, width = present[0].key, blocks.width
    heads = width // size
    fits = [number for number in range(least, heads // group + 1) if heads % number == 0]
    if width % size or not fits:
        raise RequestError(
            f"{name} is {width} wide, which is no number of heads of {size} with room for {least} groups of {group}",
            f"remove no channels of the residual stream, only heads and inner widths; or {OTHER_FORMAT}",
        )
    return fits[0], heads // fits[0]


def _pad_attention(layer: LayerTensors, had: BlockWidths, target: BlockWidths) -> None:
    groups, wanted = (had.kv_heads, had.heads // had.kv_heads), (target.kv_heads, target.heads // target.kv_heads)
    for kind in ("weight", "bias"):
        for part, old, new in ((QUERY, groups, wanted), (KEY, groups[:1], wanted[:1]), (VALUE, groups[:1], wanted[:1])):
            if (tensor := layer.get(f"{part}.{kind}")) is not None:
                size = target.value if part == VALUE else target.key
                layer[f"{part}.{kind}"] = _grown(tensor, (*old, size), (*new, size))
    output = f"{OUTPUT}.weight"
    layer[output] = _grown(layer[output].T, (*groups, target.value), (*wanted, target.value)).T


def _pad_ffn(layer: LayerTensors, width: int) -> None:
    for part in (GATE, UP):
        for kind in ("weight", "bias"):
            if (tensor := layer.get(f"{part}.{kind}")) is not None:
                layer[f"{part}.{kind}"] = _grown(tensor, (tensor.shape[0],), (width,))
    down = layer[f"{DOWN}.weight"]
    layer[f"{DOWN}.weight"] = _grown(down.T, (down.shape[1],), (width,)).T


def _grown(tensor: torch.Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> torch.Tensor:
    """A tensor whose rows are a block of ``old`` extents, with zeros up to ``new`` extents."""
    if old == new:
        return tensor
    rest = tensor.shape[1:]
    grown = tensor.new_zeros((*new, *rest))
    grown[tuple(slice(extent) for extent in old)] = tensor.reshape(*old, *rest)
    return grown.reshape(-1, *rest)


def _fill_absent(blocks: ModelTensors) -> None:
    """Zeros for the tensors that a layer lacks and others have; ones for norms."""
    shapes = {name: tensor for layer in blocks.layers for name, tensor in layer.items()}
    for layer in blocks.layers:
        for name, like in shapes.items():
            if name not in layer:
                one = name.endswith("norm.weight")
                layer[name] = torch.ones_like(like) if one else torch.zeros_like(like)


def zero_ffn(layer: LayerTensors, widths: BlockWidths, width: int, inner: int) -> BlockWidths:
    """A feed-forward network that adds nothing, in place of one that was taken out: SwiGLU without biases."""
    layer |= {f"{part}.weight": torch.zeros(inner, width) for part in (GATE, UP)}
    layer[f"{DOWN}.weight"] = torch.zeros(width, inner)
    layer.setdefault("ffn_norm.weight", torch.ones(width))
    return replace(widths, ffn=inner)


def zero_head(layer: LayerTensors, like: BlockWidths, width: int, ffn: int) -> BlockWidths:
    """One head that adds nothing, in place of an attention that was taken out, without biases."""
    sizes = {QUERY: like.key, KEY: like.key, VALUE: like.value}
    layer |= {f"{part}.weight": torch.zeros(size, width) for part, size in sizes.items()}
    layer[f"{OUTPUT}.weight"] = torch.zeros(width, like.value)
    layer.setdefault("attn_norm.weight", torch.ones(width))
    return BlockWidths(1, 1, like.key, like.value, ffn)
