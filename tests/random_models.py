"""Random small models for property tests: blocks of feed-forward, attention and convolution in any order."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fxprune.tracer.export import Traced, trace_model

ACTIVATIONS = {
    "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "softplus": functional.softplus,
}  # fmt: skip
BATCH, LENGTH = 3, 5


class FeedForward(nn.Module):
    """Plain, gated by two maps, or gated by one fused map; before the second map possibly a cut into two and a cat."""

    def __init__(self, width: int, inner: int, form: str, activation: str, swap: bool) -> None:
        super().__init__()
        self.form, self.activation, self.swap = form, ACTIVATIONS[activation], swap
        self.up = nn.Linear(width, 2 * inner if form == "fused" else inner)
        self.gate = nn.Linear(width, inner) if form == "gated" else None
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        if self.form == "fused":
            gate, h = h.chunk(2, -1)
            h = self.activation(gate) * h
        elif self.gate is not None:
            h = self.activation(self.gate(x)) * h
        else:
            h = self.activation(h)
        if self.swap:
            cut = h.shape[-1] // 3
            h = torch.cat((h[..., cut:], h[..., :cut]), -1)
        return self.down(h)


class Attention(nn.Module):
    """Grouped queries, separate or fused maps, rotary or not, the operator of torch or written out."""

    def __init__(self, width: int, heads: tuple[int, int, int], *, fused: bool, rotary: bool, written: bool) -> None:
        super().__init__()
        kv, group, dim = heads
        self.kv, self.heads, self.dim = kv, kv * group, dim
        self.fused, self.rotary, self.written = fused, rotary, written
        sizes = [self.heads * dim, kv * dim, kv * dim]
        self.sizes = sizes
        self.maps = nn.ModuleList(nn.Linear(width, n) for n in ([sum(sizes)] if fused else sizes))
        self.out = nn.Linear(self.heads * dim, width)
        self.register_buffer("cos", torch.randn(LENGTH, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        parts = self.maps[0](x).split(self.sizes, -1) if self.fused else [linear(x) for linear in self.maps]
        q, k, v = (part.view(batch, length, -1, self.dim).transpose(1, 2) for part in parts)
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        if self.written:
            mixed = (q @ k.transpose(-1, -2) / self.dim**0.5).softmax(-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        half = self.dim // 2
        return x * self.cos + torch.cat((-x[..., half:], x[..., :half]), -1) * self.cos


class Convolution(nn.Module):
    """Over the positions: a plain map, a depthwise or grouped one, a norm of running statistics, and a map back."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, inner, 1)
        self.middle = nn.Conv1d(inner, inner, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm1d(inner)
        self.last = nn.Conv1d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.relu(self.norm(self.middle(self.first(x.transpose(1, 2)))))).transpose(1, 2)


class Stack(nn.Module):
    """Blocks with or without a residual stream, then the positions mixed by a flat map."""

    def __init__(self, blocks: list[nn.Module], width: int, residual: bool, flat: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.blocks = nn.ModuleList(blocks)
        self.residual, self.flat = residual, flat
        self.head = nn.Linear(width * LENGTH if flat else width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x) if self.residual else block(x)
        return self.head(x.flatten(1) if self.flat else x)


@st.composite
def models(draw: Any) -> nn.Module:
    """A model in eval mode with random float64 weights."""
    width = draw(st.sampled_from([6, 8, 12]))

    def block() -> nn.Module:
        kind = draw(st.sampled_from(["feed-forward", "attention", "convolution"]))
        flags = [draw(st.booleans()) for _ in range(3)]
        if kind == "feed-forward":
            form, activation = draw(st.sampled_from(["plain", "gated", "fused"])), draw(st.sampled_from([*ACTIVATIONS]))
            return FeedForward(width, draw(st.sampled_from([6, 9])), form, activation, flags[0])
        if kind == "attention":
            heads = draw(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]), st.just(4)))
            return Attention(width, heads, fused=flags[0], rotary=flags[1], written=flags[2])
        return Convolution(width, 6, draw(st.sampled_from([1, 2, 3, 6])))

    blocks = [block() for _ in range(draw(st.integers(1, 2)))]
    model = Stack(blocks, width, draw(st.booleans()), draw(st.booleans())).double().eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(0, 0.5, generator=generator)
                if name.endswith("running_var"):
                    tensor.abs_()
    return model


def traced(model: nn.Module) -> Traced:
    """On one batch of features ``[3, 5, 4]``."""
    return trace_model(model, {"x": torch.zeros(BATCH, LENGTH, 4, dtype=torch.float64)})
