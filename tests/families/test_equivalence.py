"""Removing equals zeroing, on every family of the main job; the residual width against a separately built model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from fxprune.backends.graph_module import raise_graph
from fxprune.ir.groups import Kind
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.tracer.export import Traced, trace_causal_lm

from ..decoders import random_decoder
from ..draws import draws
from ..equivalence import TOLERANCE, difference, draw_plan, random_units, sliced, tensors_of

VOCAB = 61
IDS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 64, **IDS,
}  # fmt: skip
PLAIN: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **IDS}
FAMILIES: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, Any]]] = {
    "llama multi-head": (transformers.LlamaConfig, ROTARY | {"num_key_value_heads": 8, "tie_word_embeddings": True}),
    "llama grouped": (transformers.LlamaConfig, ROTARY | {"attention_bias": True, "mlp_bias": True}),
    "llama multi-query": (transformers.LlamaConfig, ROTARY | {"num_key_value_heads": 1}),
    "mistral": (transformers.MistralConfig, ROTARY | {"sliding_window": 3, "head_dim": 8}),
    "qwen2": (transformers.Qwen2Config, ROTARY),
    "qwen3": (transformers.Qwen3Config, ROTARY | {"head_dim": 8}),
    "gpt2": (transformers.GPT2Config, {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, **IDS}),
    "gpt-neox": (transformers.GPTNeoXConfig, PLAIN | {"intermediate_size": 40, "rotary_pct": 0.5}),
    "opt": (transformers.OPTConfig, PLAIN | {"ffn_dim": 40, "word_embed_proj_dim": 48, "max_position_embeddings": 64}),
    "opt projected": (
        transformers.OPTConfig, PLAIN | {"ffn_dim": 40, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ),
    "phi3": (transformers.Phi3Config, ROTARY),
    "falcon multi-query": (transformers.FalconConfig, PLAIN | {"multi_query": True, "new_decoder_architecture": False}),
    "falcon grouped": (transformers.FalconConfig, PLAIN | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon multi-head": (
        transformers.FalconConfig, PLAIN | {"multi_query": False, "new_decoder_architecture": False, "alibi": True},
    ),
}  # fmt: skip


@cache
def subject(family: str) -> tuple[torch.nn.Module, Traced, Coupling]:
    config_class, options = FAMILIES[family]
    model = random_decoder(config_class(**options), 0.3, torch.float32)
    traced = trace_causal_lm(model)
    return model, traced, couple(traced.graph)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_raised_graph_is_the_model(family: str) -> None:
    model, traced, _ = subject(family)
    ids = torch.randint(VOCAB, traced.graph.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raised = raise_graph(traced.graph, tensors_of(model), traced.constants)(ids)[0]
        assert torch.equal(raised, model(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_heads_and_a_width_and_all_share_the_residual_width(family: str) -> None:
    _, _, coupling = subject(family)
    assert not coupling.unknown
    free = {(group.kind, group.layer) for group in coupling.prunable}
    for layer in (0, 1):
        assert (Kind.WIDTH, layer) in free
        assert {(Kind.HEADS, layer), (Kind.KV_HEADS, layer)} & free
    assert (Kind.CHANNELS, None) in free


@pytest.mark.parametrize("family", FAMILIES)
@draws(3)
@given(data=st.data())
def test_removing_equals_zeroing(family: str, data: st.DataObject) -> None:
    """Any plan over any groups that no normalisation crosses, head channels included."""
    model, traced, coupling = subject(family)
    assert difference(traced, coupling, model, draw_plan(coupling, data)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_alone_equals_zeroing(family: str) -> None:
    model, traced, coupling = subject(family)
    generator = np.random.default_rng(0)
    groups = [g for g in coupling.prunable if g.layer == 0 and not g.normalised and g.size > 1]
    assert groups
    for group in groups:
        keep = {group.name: random_units(group, generator)}
        assert difference(traced, coupling, model, keep) <= TOLERANCE, group.name


SMALLER: dict[str, dict[str, Any]] = {
    "llama multi-head": {"hidden_size": 32, "head_dim": 6},
    "llama grouped": {"hidden_size": 32, "head_dim": 6},
    "mistral": {"hidden_size": 36},
    "qwen3": {"hidden_size": 36},
    "gpt2": {"n_embd": 36, "n_head": 3, "n_inner": 192},
    "opt": {"hidden_size": 36, "num_attention_heads": 3, "word_embed_proj_dim": 36},
    "gpt-neox": {"hidden_size": 36, "num_attention_heads": 3},
    "falcon multi-query": {"hidden_size": 36, "num_attention_heads": 3, "ffn_hidden_size": 192},
}
"""Configurations of separately built models; where the head size is the hidden size over the heads, heads go along."""


@pytest.mark.parametrize("family", SMALLER)
def test_the_residual_width_equals_a_separately_built_model(family: str) -> None:
    model, traced, coupling = subject(family)
    config_class, options = FAMILIES[family]
    changes = SMALLER[family]
    (residual,) = (g for g in coupling.prunable if g.kind is Kind.CHANNELS)
    width = changes.get("hidden_size", changes.get("n_embd"))
    generator = np.random.default_rng(5)
    keep = {residual.name: np.sort(generator.choice(residual.size, width, replace=False))}
    if "num_attention_heads" in changes or "n_head" in changes:
        keep |= {g.name: np.array([0, 2, 3]) for g in coupling.prunable if g.kind is Kind.HEADS}
    plan = make_plan(coupling, keep)
    small = transformers.AutoModelForCausalLM.from_config(
        config_class(**(options | changes)), dtype=torch.float64
    ).eval()
    weights = sliced(plan, dict(model.named_parameters()))
    small.load_state_dict({name: tensor.detach() for name, tensor in weights.items()}, strict=False)
    tensors = {**tensors_of(model), **weights}
    ids = torch.randint(VOCAB, traced.graph.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raised = raise_graph(rewrite(coupling, plan), tensors, traced.constants, dtype=torch.float64)(ids)[0]
        built = small(input_ids=ids, use_cache=False).logits
    # Some modules compute their norm in float32 whatever the weights are.
    assert float((raised - built).abs().max() / built.abs().max()) <= 1e-6
