"""How the widths of a model are said to llama.cpp: the same for all layers, per layer, or padded; or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...ir.errors import RequestError
from .architectures import OTHER_FORMAT, Architecture
from .blocks import KEY, QUERY, LayerTensors, ModelTensors
from .padding import pad, zero_ffn, zero_head

BLOCK = 32
"""Weights that llama.cpp's rounded types store with one scale."""


@dataclass(frozen=True)
class WidthForm:
    """What was chosen.

    Attributes:
        name: the architecture that the file names.
        per_layer: whether it lists widths layer by layer.
        zeros: weights that were added.
    """

    name: str
    per_layer: bool = False
    zeros: int = 0


def choose_form(blocks: ModelTensors, row: Architecture, *, padded: bool, name: str) -> WidthForm:
    """Choose how to write the widths, and change the tensors for it, in place.

    Args:
        blocks: the tensors of the model.
        row: its architecture.
        padded: whether zeros may be put in the place of what was removed.
        name: the model, for messages.

    Raises:
        RequestError: llama.cpp cannot load such widths; or nothing is to be padded.
    """
    _check_biases(blocks, row, name)
    why = _not_uniform(blocks, row)
    if padded:
        if not why:
            raise RequestError(f"--pad has no effect: {name} has widths that llama.cpp takes", "leave --pad out")
        return WidthForm(row.name, zeros=pad(blocks, row, name))
    if not why:
        return WidthForm(row.name)
    if not row.free:
        raise RequestError(f"{name} {why}, which llama.cpp's {row.name} does not take", _ADVICE)
    if any(name.endswith(".bias") for layer in blocks.layers for name in layer):
        raise RequestError(f"{name} {why}, and has biases, which llama.cpp's {row.free} does not take", _ADVICE)
    return _per_layer(blocks, row, name)


_ADVICE = (
    "--pad writes zeros in the place of what was removed (as large as before); or prune with heads=off and all layers "
    f"alike; or {OTHER_FORMAT}"
)


def _check_biases(blocks: ModelTensors, row: Architecture, name: str) -> None:
    for place, tensor in blocks.named():
        part, _, kind = place.rpartition(".")
        part = part.rpartition(".")[2]
        if kind == "bias" and part not in row.biases:
            raise RequestError(
                f"{name} has a bias {place} {list(tensor.shape)}, which llama.cpp's {row.name} lacks", OTHER_FORMAT
            )


def _not_uniform(blocks: ModelTensors, row: Architecture) -> str:
    """Why the widths are not those of one configuration of llama.cpp, as the end of a sentence; "" when they are."""
    for number, widths in enumerate(blocks.widths):
        for part, count in (("attention", widths.heads), ("feed-forward network", widths.ffn)):
            if not count:
                return f"has no {part} in layer {number}"
        if widths != blocks.widths[0]:
            return f"has other widths in layer {number} than in layer 0"
    first = blocks.widths[0]
    if row.square and first.heads * first.key != blocks.width:
        return f"has {first.heads} heads of {first.key} in a width of {blocks.width}"
    return ""


def _per_layer(blocks: ModelTensors, row: Architecture, name: str) -> WidthForm:
    """Widths layer by layer, for code that skips a layer without a feed-forward network whole, its attention too, and
    takes the size of a head from the first layer."""
    present = [widths for widths in blocks.widths if widths.heads]
    if not present or any((one.key, one.value) != (present[0].key, present[0].key) for one in present):
        sizes = "no attention left" if not present else "heads of different sizes"
        raise RequestError(f"{name} has {sizes}, which llama.cpp's {row.free} does not take", OTHER_FORMAT)
    before = sum(tensor.numel() for _, tensor in blocks.named())
    for number, layer in enumerate(blocks.layers):
        widths = blocks.widths[number]
        if not widths.heads and number == 0:
            widths = zero_head(layer, present[0], blocks.width, widths.ffn)
        if not widths.heads:
            layer.pop("attn_norm.weight", None)
            widths = replace(widths, key=present[0].key, value=present[0].value)
        if not widths.ffn:
            widths = zero_ffn(layer, widths, blocks.width, BLOCK)
        blocks.widths[number] = widths
    zeros = sum(tensor.numel() for _, tensor in blocks.named()) - before
    return WidthForm(row.free, per_layer=True, zeros=max(zeros, 0))


def rotate_neighbours(blocks: ModelTensors, rotated: int) -> None:
    """Put the two channels that rotate together side by side, in place. In transformers the first ones of all pairs are
    the first half of the rotated channels of a head, and the second ones the second half.

    Args:
        blocks: with the parts of attention apart.
        rotated: channels of a head that are rotated; they come first.
    """
    for layer, widths in zip(blocks.layers, blocks.widths, strict=True):
        for part, heads in ((QUERY, widths.heads), (KEY, widths.kv_heads)):
            for kind in ("weight", "bias"):
                _rotate(layer, f"{part}.{kind}", heads, rotated)


def _rotate(layer: LayerTensors, name: str, heads: int, rotated: int) -> None:
    tensor = layer.get(name)
    if tensor is None:
        return
    by_head = tensor.reshape(heads, -1, *tensor.shape[1:]).clone()
    turned = by_head[:, :rotated]
    pairs = turned.reshape(heads, 2, rotated // 2, *tensor.shape[1:]).transpose(1, 2)
    by_head[:, :rotated] = pairs.reshape(turned.shape).clone()
    layer[name] = by_head.reshape(tensor.shape)
