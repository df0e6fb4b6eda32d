"""Tiny configurations of causal language models: what each model type needs beyond the shared small sizes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 131

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "n_embd": 48, "d_model": 48, "dim": 48, "embed_dim": 48,
    "intermediate_size": 40, "ffn_dim": 40, "ffn_hidden_size": 40, "decoder_ffn_dim": 40, "encoder_ffn_dim": 40,
    "n_inner": 40, "d_ff": 40,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 12, "kv_channels": 12,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "seq_length": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20, "moe_k": 2, "n_shared_experts": 1,
    "moe_num_experts": 4, "n_group": 1, "topk_group": 1, "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 24, "mamba_n_groups": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "rotary_dim": 4, "type_vocab_size": 2, "word_embed_proj_dim": 48, "embedding_size": 48, "sliding_window": 4,
}  # fmt: skip
"""Small values for common fields; a configuration takes those that it has."""

LINEAR_THEN_FULL: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}

ROWS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": LINEAR_THEN_FULL,
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 48},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 96},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "kimi_linear": LINEAR_THEN_FULL,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 24, "n_groups": 1},
    "olmo_hybrid": LINEAR_THEN_FULL,
    "qwen3_5_moe_text": LINEAR_THEN_FULL,
    "qwen3_5_text": LINEAR_THEN_FULL,
    "qwen3_next": LINEAR_THEN_FULL,
    "qwen4_exp_text": LINEAR_THEN_FULL,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [24, 24],
    },
    "stablelm": {"partial_rotary_factor": 0.5},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type -> fields on top of the shared sizes; ``LEAVE`` stands for the configuration's own default."""

NOT_TRACED: dict[str, str] = {
    "blt": "its hash embedding has 3,000,012 rows whatever the configuration says",
    "cohere_compass_text": "its default layer types name a rotary table that its configuration does not make",
    "dbrx": "its experts have no implementation without data-dependent extents",
    "dots3_note": "its default per-layer configuration names more layers than a small model has",
    "gemma3n": "its vision tower needs timm",
    "gemma3n_text": "layers that share a cache must have the types of those that fill it: no two-layer model",
    "gemma4_assistant": "its parts validate one another's sizes: not yet configured small",
    "gemma4_unified_assistant": "its parts validate one another's sizes: not yet configured small",
    "jetmoe": "its experts have no implementation without data-dependent extents",
    "longcat_flash": "its experts have no implementation without data-dependent extents",
    "musicgen": "the mapping names a class that takes another configuration",
    "musicgen_melody": "the mapping names a class that takes another configuration",
    "qwen4_exp": "sizes without a default: not yet configured small",
    "qwen4_exp_text": "sizes without a default: not yet configured small",
    "reformer": "chunk counts that depend on values",
    "xmod": "it selects rows by language: extents depend on values",
    "zamba": "its shared layers tie only in the published pattern",
}
"""Model type -> why it is not built small or not traced."""

WITHOUT: dict[str, set[str]] = {
    **{key: {"heads"} for key in ("falcon_mamba", "mamba", "mamba2", "xlstm")},  # no attention
    "deepseek_v4": {"heads"},  # cuts that fall inside heads
    "inkling2_text": {"channels"},
    "moshi": {"channels"},
    "prophetnet": {"heads"},  # heads folded into positions
    "rwkv": {"heads", "width", "channels"},  # its recurrence writes by computed positions
    "xlnet": {"channels"},
}
"""Model type -> what of heads, width and residual channels stays frozen or does not exist."""


def names() -> list[str]:
    """Every model type that transformers maps to a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


class _Leave:
    """The configuration's own default."""


LEAVE = _Leave


def tiny_config(model_type: str) -> Any:
    """A small configuration of a model type, its parts small too."""
    return _tiny(type(transformers.AutoConfig.for_model(model_type)), model_type)


def _tiny(config_class: Any, model_type: str) -> Any:
    fields = _fields(config_class)
    chosen = {key: value for key, value in SIZES.items() if key in fields}
    if "kv_lora_rank" in fields:  # latent attention: every head has keys of its own, part of which rotates
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
        if "head_dim" in fields:
            chosen["head_dim"] = SIZES["qk_rope_head_dim"]
    for part in getattr(config_class, "sub_configs", {}):
        default = getattr(config_class(), part, None)
        if isinstance(default, transformers.PreTrainedConfig):
            chosen[part] = _tiny(type(default), default.model_type).to_dict()
    chosen |= ROWS.get(model_type, {})
    return config_class(**{key: value for key, value in chosen.items() if value is not LEAVE})


def _fields(config_class: Any) -> set[str]:
    declared = {name for klass in config_class.__mro__ for name in getattr(klass, "__annotations__", {})}
    return declared | set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)


def tiny_model(model_type: str, *, device: str = "cpu", seed: int = 0) -> torch.nn.Module:
    """A small model with random weights in eval mode, its experts in the implementation that traces."""
    config = tiny_config(model_type)
    torch.manual_seed(seed)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("batched_mm")
    if device != "meta":
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3, generator=generator)
    return model
