"""Contributions against a naive computation with full gradients, and what a bad request or a bad model is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes import contributions as parts
from fxprune.passes.contributions import Contributions, Wanted, magnitude
from fxprune.passes.gradients import taylor

VARIANTS = ("vector", "element1", "second", "element2")
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2}

FAMILIES: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama-gqa": lambda: transformers.LlamaConfig(**GATED, tie_word_embeddings=False),
    "llama-tied": lambda: transformers.LlamaConfig(**GATED, tie_word_embeddings=True, pad_token_id=3),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32),
    "falcon": lambda: transformers.FalconConfig(**SIZES, bias=True, new_decoder_architecture=True, num_kv_heads=2),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=24),
    "qwen3": lambda: transformers.Qwen3Config(**GATED, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**GATED, pad_token_id=0),
    "experts-batched": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    "experts-eager": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    "gemma": lambda: transformers.GemmaConfig(**GATED, head_dim=4),
}


def build(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    if family.startswith("experts"):
        model.set_experts_implementation("batched_mm" if family.endswith("batched") else "eager")
    with torch.no_grad():  # far from zero, or the second order would not be seen
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def draw(samples: int = 3, length: int = 7) -> Tensor:
    return torch.randint(48, (samples, length), generator=torch.Generator().manual_seed(1))


def all_dimensions(model: nn.Module) -> Wanted:
    return {name: frozenset(range(p.dim())) for name, p in model.named_parameters()}


def naive(model: nn.Module, tokens: Tensor, wanted: Wanted, variant: str) -> Contributions:
    """The formulas with all gradients in memory and a backward pass for every sample."""
    named = {name: p for name, p in model.named_parameters() if name in wanted}

    def gradients(batch: Tensor) -> dict[str, Tensor]:
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}

    whole = gradients(tokens)
    single = [gradients(tokens[j : j + 1]) for j in range(len(tokens))]
    contributions = {}
    for name, weight in named.items():
        squares = sum(g[name].double() ** 2 for g in single) / len(single)
        w, g = weight.detach().double(), whole[name].double()
        saliency = {"second": w * squares * w, "element2": w * g - 0.5 * w * squares * w}.get(variant, w * g)
        for dim in wanted[name]:
            others = [d for d in range(w.dim()) if d != dim]
            if variant == "vector":
                vector = (saliency.sum(dim=others) if others else saliency).abs()
            else:
                vector = saliency.abs().sum(dim=others) if others else saliency.abs()
            contributions[name, dim] = vector.numpy()
    return contributions


def assert_same(got: Contributions, expected: Contributions, relative: float) -> None:
    assert got.keys() == expected.keys()
    # Softmax does not feel the bias of keys: what its gradient shows is rounding, of the size of this.
    noise = 1e-14 * max(float(np.abs(vector).max()) for vector in expected.values())
    for key, vector in expected.items():
        assert got[key].dtype == np.float64
        np.testing.assert_allclose(
            got[key], vector, rtol=relative, atol=relative * np.abs(vector).max() + noise, err_msg=str(key)
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_naive_computation(family: str, variant: str) -> None:
    model = build(family)
    wanted = all_dimensions(model)
    expected = naive(model, draw(), wanted, variant)
    assert_same(taylor(model, draw(), wanted, variant), expected, 1e-6)
