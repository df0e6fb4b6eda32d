"""The tensors of a model under their names in GGUF, block by block, each part in a tensor of its own.

A fused matrix (queries, keys and values; gate and up) is taken apart here, so that what pads or permutes heads has one
case. ``fused`` puts the parts together again for the architectures of llama.cpp that want them so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ...ir.errors import RequestError
from .architectures import Architecture

LayerTensors = dict[str, torch.Tensor]

QUERY, KEY, VALUE, OUTPUT = "attn_q", "attn_k", "attn_v", "attn_output"
GATE, UP, DOWN = "ffn_gate", "ffn_up", "ffn_down"
FUSED_HEADS, FUSED_GATE = "attn_qkv", "ffn_up"

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class BlockWidths:
    """The widths of a block.

    Attributes:
        heads: query heads; 0 where the attention was taken out.
        kv_heads: heads of keys and values.
        key: size of a head of queries and keys.
        value: size of a head of values.
        ffn: inner width of the feed-forward network; 0 where it was taken out.
    """

    heads: int
    kv_heads: int
    key: int
    value: int
    ffn: int


@dataclass
class ModelTensors:
    """The tensors of a model.

    Attributes:
        whole: name -> tensor, of those outside of blocks.
        layers: for each block, the name in it -> tensor.
        widths: for each block.
    """

    whole: LayerTensors
    layers: list[LayerTensors]
    widths: list[BlockWidths] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return int(self.whole["token_embd.weight"].shape[1])

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.whole["token_embd.weight"].shape[0])

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name in the file -> tensor, in the order of the file."""
        yield from self.whole.items()
        for number, layer in enumerate(self.layers):
            yield from ((f"blk.{number}.{name}", tensor) for name, tensor in layer.items())


def read_blocks(model: Any, row: Architecture, gguf: ModuleType) -> ModelTensors:
    """The tensors of a module with its weights, with names of GGUF, and what the architecture changes in values.

    Args:
        model: a ``PreTrainedModel`` in float32 on the CPU.
        row: its architecture.
        gguf: the package, which knows the names.

    Raises:
        RequestError: a tensor has no place in the file.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    places = gguf.get_tensor_name_map(_key(gguf, row.name), count)
    whole: LayerTensors = {}
    layers: list[LayerTensors] = [{} for _ in range(count)]
    sizes: dict[int, int] = {}
    embedding = model.get_input_embeddings().weight
    for name, tensor in _stored(model, row, embedding):
        found = row.place(name) or places.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RequestError(
                f"{name} has no place in a GGUF file of llama.cpp's {row.name}",
                "this model has a part that llama.cpp's code for it lacks; export it with --format onnx",
            )
        owner = model.get_submodule(name.rpartition(".")[0])
        turned = tensor.detach()
        turned = turned.T if isinstance(owner, Conv1D) and turned.dim() == 2 else turned
        turned = turned + 1 if row.adds_one(found) else turned
        inside = _BLOCK.fullmatch(found)
        if inside is None:
            whole[found] = turned
            continue
        layers[int(inside[1])][inside[2]] = turned
        parent = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
        if size := _head_size(parent, row):
            sizes[int(inside[1])] = size
    blocks = ModelTensors(whole, layers)
    usual = _usual_size(model, blocks.width)
    for number, layer in enumerate(layers):
        blocks.widths.append(_apart(layer, row, sizes.get(number, usual), f"layer {number}"))
    return blocks


def _stored(model: Any, row: Architecture, embedding: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Name -> tensor of the checkpoint. An output head that is the embedding itself is left out where llama.cpp takes
    the embedding for it."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied = tensor is embedding and name != _embedding_name(model, embedding)
        if not (tied and not row.keeps_output):
            yield name, tensor


def _embedding_name(model: Any, embedding: torch.Tensor) -> str:
    return next(name for name, tensor in model.named_parameters() if tensor is embedding)


def _key(gguf: ModuleType, name: str) -> Any:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _head_size(module: Any, row: Architecture) -> int | None:
    """Of a module of attention, whose code reads it there."""
    found = (getattr(module, name, None) for name in row.head_sizes)
    return next((size for size in found if isinstance(size, int)), None)


def _usual_size(model: Any, width: int) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or width // config.num_attention_heads)


def _apart(layer: LayerTensors, row: Architecture, size: int, where: str) -> BlockWidths:
    """Take fused matrices apart, in place, and measure."""
    heads = kv_heads = value = 0
    if (output := layer.get(f"{OUTPUT}.weight")) is not None:
        if any(name.startswith(f"{FUSED_HEADS}.") for name in layer):
            rows = layer[f"{FUSED_HEADS}.weight"].shape[0] // size
            heads = output.shape[1] // size
            kv_heads = (rows - heads) // 2
            _split(layer, heads, kv_heads, interleaved=row.interleaved)
        heads, kv_heads = (layer[f"{part}.weight"].shape[0] // size for part in (QUERY, KEY))
        value = layer[f"{VALUE}.weight"].shape[0] // kv_heads
        expected = {QUERY: heads * size, KEY: kv_heads * size, VALUE: kv_heads * value}
        fits = all(layer[f"{part}.weight"].shape[0] == rows for part, rows in expected.items())
        if not fits or heads % kv_heads or output.shape[1] != heads * value:
            raise RequestError(
                f"{where} has attention that is no number of equal heads of {size}",
                "llama.cpp has one size for all heads; export it with --format onnx",
            )
    ffn = 0
    if (down := layer.get(f"{DOWN}.weight")) is not None:
        ffn = int(down.shape[1])
        if row.fused_gate and layer[f"{FUSED_GATE}.weight"].shape[0] == 2 * ffn:
            gate, up = layer.pop(f"{FUSED_GATE}.weight").split(ffn)
            layer |= {f"{GATE}.weight": gate, f"{UP}.weight": up}
    return BlockWidths(heads, kv_heads, size, value, ffn)


def _split(layer: LayerTensors, heads: int, kv_heads: int, *, interleaved: bool) -> None:
    """Take the matrix of all heads apart, in place. ``interleaved``: it lists for each head of keys its query heads,
    itself, its values."""
    for kind in ("weight", "bias"):
        matrix = layer.pop(f"{FUSED_HEADS}.{kind}", None)
        if matrix is None:
            continue
        rest = matrix.shape[1:]
        size = matrix.shape[0] // (heads + 2 * kv_heads)
        if interleaved:
            groups = matrix.reshape(kv_heads, heads // kv_heads + 2, size, *rest)
            pieces = groups[:, :-2], groups[:, -2], groups[:, -1]
        else:
            pieces = matrix.split([heads * size, kv_heads * size, kv_heads * size])
        for part, piece in zip((QUERY, KEY, VALUE), pieces, strict=True):
            layer[f"{part}.{kind}"] = piece.reshape(-1, *rest)


def fused(blocks: ModelTensors, row: Architecture) -> None:
    """Put the parts together that the architecture wants in one matrix, in place."""
    wanted: Mapping[str, tuple[str, ...]] = {
        **({FUSED_HEADS: (QUERY, KEY, VALUE)} if row.fused_heads else {}),
        **({FUSED_GATE: (GATE, UP)} if row.fused_gate else {}),
    }
    for layer in blocks.layers:
        for whole, parts in wanted.items():
            for kind in ("weight", "bias"):
                names = [f"{part}.{kind}" for part in parts]
                if all(name in layer for name in names):
                    layer[f"{whole}.{kind}"] = torch.cat([layer.pop(name) for name in names])
