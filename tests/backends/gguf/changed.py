"""Models whose layers differ, or lack parts, as pruning leaves them."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.backends.huggingface.free_form import Absent

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
"""What architectures call it."""


def without(model: Any, attention: tuple[int, ...], ffn: tuple[int, ...]) -> Any:
    """A model without the attention and the feed-forward networks of some layers."""
    for number in attention:
        name = next(
            name
            for name in ("self_attn", "attn", "attention", "self_attention")
            if hasattr(layers(model)[number], name)
        )
        setattr(layers(model)[number], name, Absent({"outputs": 2, "cache": number}))
    for number in ffn:
        layers(model)[number].mlp = Absent({"outputs": 0, "cache": None})
    return model


def layers(model: Any) -> Any:
    inner = model.get_decoder()
    return inner.layers if hasattr(inner, "layers") else inner.h


def narrowed(model: Any, layer: int, kv_heads: int, ffn: int) -> Any:
    """A model of which one layer has fewer groups of heads and a smaller inner width than the others."""
    attention, mlp = layers(model)[layer].self_attn, layers(model)[layer].mlp
    size, groups = attention.head_dim, attention.num_key_value_groups
    cut = {"q_proj": groups * kv_heads * size, "k_proj": kv_heads * size, "v_proj": kv_heads * size}
    for module, names in ((attention, cut), (mlp, {"gate_proj": ffn, "up_proj": ffn})):
        for name, rows in names.items():
            linear = getattr(module, name)
            linear.weight = torch.nn.Parameter(linear.weight[:rows].detach().clone())
            if linear.bias is not None:
                linear.bias = torch.nn.Parameter(linear.bias[:rows].detach().clone())
    for module, name, columns in ((attention, "o_proj", groups * kv_heads * size), (mlp, "down_proj", ffn)):
        linear = getattr(module, name)
        linear.weight = torch.nn.Parameter(linear.weight[:, :columns].detach().clone())
    return model


def fewer_queries(model: Any, layer: int) -> Any:
    """A model of which one layer has half of the query heads of each head of keys."""
    attention = layers(model)[layer].self_attn
    size, groups = attention.head_dim, attention.num_key_value_groups
    query, output = attention.q_proj.weight, attention.o_proj.weight
    kept = query.reshape(-1, groups, size, query.shape[1])[:, : groups // 2].reshape(-1, query.shape[1])
    columns = output.reshape(output.shape[0], -1, groups, size)[:, :, : groups // 2].reshape(output.shape[0], -1)
    attention.q_proj.weight = torch.nn.Parameter(kept.detach().clone())
    attention.o_proj.weight = torch.nn.Parameter(columns.detach().clone())
    attention.num_key_value_groups = groups // 2
    return model
