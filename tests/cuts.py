"""Tiny random models, and plans for them written by hand.

Which rows and columns go with heads, FFN channels or residual channels, and the extents that a trace would report.
And models shrunk by them, with what a backend is given to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from fxprune.backends.verify import Reference
from fxprune.ir.plan import Plan
from fxprune.passes.shrink.module import shrink_module
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference

VOCAB = 40
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def spread(units: Iterable[int], size: int, start: int = 0) -> list[int]:
    """The rows of whole units of ``size`` rows each."""
    return [start + unit * size + row for unit in units for row in range(size)]


@dataclass
class Cut:
    """A plan under construction."""

    model: nn.Module
    slices: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    noted: dict[str, set[tuple[int, int]]] = field(default_factory=dict)

    def rows(self, dim: int, keep: list[int], *names: str) -> None:
        for name in names:
            self.slices[name, dim] = np.array(keep, dtype=np.int64)

    def note(self, path: str, *pairs: tuple[int, int]) -> None:
        self.noted.setdefault(path, set()).update(pairs)

    def plan(self) -> Plan:
        return Plan(slices=self.slices)

    def extents(self) -> dict[str, frozenset[tuple[int, int]]]:
        """Every parameter's extents before and after, and what was noted, under the module and all that contain it."""
        pairs: dict[str, set[tuple[int, int]]] = {path: set() for path, _ in self.model.named_modules()}
        for name, parameter in self.model.named_parameters():
            for dim, size in enumerate(parameter.shape):
                kept = self.slices.get((name, dim))
                pairs[name.rpartition(".")[0]].add((size, size if kept is None else len(kept)))
        for path, noted in self.noted.items():
            pairs[path] |= noted
        for path in sorted(pairs, key=len, reverse=True):
            if path:
                pairs[path.rpartition(".")[0]] |= pairs[path]
        return {path: frozenset(found) for path, found in pairs.items()}

    def masked(self) -> nn.Module:
        """Zero what the plan removes: the reference for every cut that no normalisation crosses."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for (name, dim), kept in self.slices.items():
                gone = np.setdiff1d(np.arange(parameters[name].shape[dim]), kept)
                parameters[name].index_fill_(dim, torch.tensor(gone), 0.0)
        return self.model


def build(name: str, seed: int = 0, **config: Any) -> nn.Module:
    """A causal language model of random weights in float32; every parameter random, biases and norms included."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **COMMON, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def example(rows: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**example()).logits


def split_heads(layer: int, cut: Cut, *, heads: list[int], kv: list[int], total: tuple[int, int], size: int) -> None:
    """Llama-like attention with separate projections, and a gated FFN of 96 that becomes 72."""
    attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
    cut.rows(0, spread(heads, size), f"{attention}.q_proj.weight")
    cut.rows(0, spread(kv, size), f"{attention}.k_proj.weight", f"{attention}.v_proj.weight")
    cut.rows(1, spread(heads, size), f"{attention}.o_proj.weight")
    cut.note(attention, (total[0], len(heads)), (total[1], len(kv)), (size, size), (size // 2, size // 2), (3, 3))
    cut.note(attention, (total[0] // total[1], len(heads) // len(kv)))
    narrow = [i for i in range(96) if i % 4 != 1]
    cut.rows(0, narrow, f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")
    cut.rows(1, narrow, f"{mlp}.down_proj.weight")


LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama_mha(layers: Iterable[int] = (0, 1), **config: Any) -> Cut:
    model = build("llama", **{**LLAMA, **config})
    cut = Cut(model)
    for layer in layers:
        split_heads(layer, cut, heads=[0, 2, 3], kv=[0, 2, 3], total=(4, 4), size=16)
    return cut


def llama_gqa() -> Cut:
    """8 heads of 8: the head count that changes equals the head size that stays; and as many layers."""
    config = {**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 8}
    cut = Cut(build("llama", **config, tie_word_embeddings=True))
    for layer in range(8):
        split_heads(layer, cut, heads=[0, 1, 4, 5, 6, 7], kv=[0, 2, 3], total=(8, 4), size=8)
    return cut


def llama_queries() -> Cut:
    """Every kv head drops its own query head: 2 query heads per kv head become 1."""
    cut = Cut(build("llama", **{**LLAMA, "num_key_value_heads": 2}, head_dim=16))
    for layer in range(2):
        split_heads(layer, cut, heads=[0, 3], kv=[0, 1], total=(4, 2), size=16)
    return cut


READERS = tuple(
    f"{name}.weight" for name in ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
)


def llama_residual() -> Cut:
    """The residual width goes from 64 to 48."""
    cut = Cut(build("llama", **LLAMA))
    keep = [i for i in range(64) if i % 4]
    for name, parameter in cut.model.named_parameters():
        if name.endswith(READERS):
            cut.rows(1, keep, name)
        elif name.endswith(("o_proj.weight", "down_proj.weight")) or parameter.ndim == 1:
            cut.rows(0, keep, name)
    for layer in range(2):
        cut.note(f"model.layers.{layer}.self_attn", (4, 4), (16, 16), (8, 8), (64, 64))
        cut.note(f"model.layers.{layer}", (64, 48))
    return cut


def qwen3() -> Cut:
    cut = Cut(build("qwen3", **{**LLAMA, "num_key_value_heads": 2}, head_dim=12))
    for layer in range(2):
        split_heads(layer, cut, heads=[2, 3], kv=[1], total=(4, 2), size=12)
    return cut


def gpt2() -> Cut:
    cut = Cut(build("gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=64))
    heads = spread([0, 1, 3], 16)
    narrow = [i for i in range(256) if i % 4 != 2]
    for layer in range(2):
        attention, mlp = f"transformer.h.{layer}.attn", f"transformer.h.{layer}.mlp"
        fused = [part * 64 + row for part in range(3) for row in heads]
        cut.rows(1, fused, f"{attention}.c_attn.weight")
        cut.rows(0, fused, f"{attention}.c_attn.bias")
        cut.rows(0, heads, f"{attention}.c_proj.weight")
        cut.note(attention, (64, 48), (4, 3), (16, 16))
        cut.rows(1, narrow, f"{mlp}.c_fc.weight")
        cut.rows(0, narrow, f"{mlp}.c_fc.bias", f"{mlp}.c_proj.weight")
    return cut


def gpt_neox() -> Cut:
    """Query, key and value interleaved within a head; a quarter of each head is rotary."""
    config = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 2}
    cut = Cut(build("gpt_neox", **config))
    narrow = list(range(72))
    for layer in range(2):
        attention, mlp = f"gpt_neox.layers.{layer}.attention", f"gpt_neox.layers.{layer}.mlp"
        cut.rows(0, spread([1, 2, 3], 48), f"{attention}.query_key_value.weight", f"{attention}.query_key_value.bias")
        cut.rows(1, spread([1, 2, 3], 16), f"{attention}.dense.weight")
        cut.note(attention, (4, 3), (48, 48), (16, 16), (12, 12), (4, 4), (2, 2), (64, 48))
        cut.rows(0, narrow, f"{mlp}.dense_h_to_4h.weight", f"{mlp}.dense_h_to_4h.bias")
        cut.rows(1, narrow, f"{mlp}.dense_4h_to_h.weight")
    return cut


def opt() -> Cut:
    """8 heads of 8 without rotary tables: views of the wrong head size run as well as the right one."""
    config = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 2}
    cut = Cut(build("opt", **config, num_attention_heads=8, max_position_embeddings=64))
    heads, narrow = spread([0, 1, 2, 4, 6, 7], 8), list(range(24, 96))
    for layer in range(2):
        block = f"model.decoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj"):
            cut.rows(0, heads, f"{block}.self_attn.{projection}.weight", f"{block}.self_attn.{projection}.bias")
        cut.rows(1, heads, f"{block}.self_attn.out_proj.weight")
        cut.note(f"{block}.self_attn", (8, 6), (8, 8), (64, 48))
        cut.rows(0, narrow, f"{block}.fc1.weight", f"{block}.fc1.bias")
        cut.rows(1, narrow, f"{block}.fc2.weight")
    return cut


def phi3() -> Cut:
    """Fused projections whose split the forward reads from the configuration; as many layers as heads."""
    config = {**LLAMA, "num_hidden_layers": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    cut = Cut(build("phi3", **config, original_max_position_embeddings=64))
    narrow = [i for i in range(96) if i % 4]
    for layer in range(4):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        fused = spread([2, 3], 16) + spread([1], 16, 64) + spread([1], 16, 96)
        cut.rows(0, fused, f"{attention}.qkv_proj.weight")
        cut.rows(1, spread([2, 3], 16), f"{attention}.o_proj.weight")
        cut.note(attention, (4, 2), (2, 1), (2, 2), (16, 16), (64, 32), (32, 16), (96, 48), (8, 8))
        cut.rows(0, narrow + [96 + i for i in narrow], f"{mlp}.gate_up_proj.weight")
        cut.rows(1, narrow, f"{mlp}.down_proj.weight")
        cut.note(mlp, (96, 72))
    return cut


FALCON = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "alibi": False, "bias": False}


def falcon_multi_query() -> Cut:
    cut = Cut(build("falcon", **FALCON, multi_query=True, new_decoder_architecture=False, parallel_attn=True))
    for layer in range(2):
        attention = f"transformer.h.{layer}.self_attention"
        cut.rows(0, spread([0, 1, 3], 16) + list(range(64, 96)), f"{attention}.query_key_value.weight")
        cut.rows(1, spread([0, 1, 3], 16), f"{attention}.dense.weight")
        cut.note(attention, (4, 3), (6, 5), (16, 16), (1, 1), (64, 48), (8, 8))
        falcon_ffn(cut, layer)
    return cut


def falcon_grouped() -> Cut:
    """Rows ordered kv head, then its query heads, its key and its value."""
    cut = Cut(build("falcon", **FALCON, num_kv_heads=2, new_decoder_architecture=True))
    for layer in range(2):
        attention = f"transformer.h.{layer}.self_attention"
        cut.rows(0, spread([1], 64), f"{attention}.query_key_value.weight")
        cut.rows(1, spread([1], 32), f"{attention}.dense.weight")
        cut.note(attention, (2, 1), (4, 2), (4, 4), (2, 2), (16, 16), (8, 8), (64, 32))
        falcon_ffn(cut, layer)
    return cut


def falcon_ffn(cut: Cut, layer: int) -> None:
    narrow = [i for i in range(256) if i % 4 != 3]
    cut.rows(0, narrow, f"transformer.h.{layer}.mlp.dense_h_to_4h.weight")
    cut.rows(1, narrow, f"transformer.h.{layer}.mlp.dense_4h_to_h.weight")


def llama_range() -> Cut:
    return llama_mha(layers=[1])


CUTS: dict[str, Callable[[], Cut]] = {
    function.__name__: function
    for function in (llama_mha, llama_gqa, llama_queries, llama_range, qwen3, gpt2, gpt_neox, opt, phi3)
} | {"falcon_multi_query": falcon_multi_query, "falcon_grouped": falcon_grouped}


def shrunk(make: Callable[[], Cut]) -> tuple[Cut, dict[str, Any]]:
    """A shrunken model, and what ``save`` needs with it; the reference is the masked original where that is one."""
    cut = make()
    extents = cut.extents()
    masked = None if make is llama_residual else logits(make().masked())
    accept = None if masked is None else lambda: relative_difference(logits(cut.model), masked) < LOGITS_TOLERANCE
    repairs = shrink_module(cut.model, cut.plan(), extents, example(), accept=accept)
    reference = Reference(example(), logits(cut.model) if masked is None else masked)
    details = {"plan": cut.plan(), "repairs": repairs, "quantities": extents[""], "reference": reference}
    return cut, {"source": None, "report": {"pipeline": "by hand"}, **details}
