"""Tiny configurations of causal language models: what each model type needs beyond the shared small sizes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
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
    "index_n_heads": 4, "index_head_dim": 16, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
}  # fmt: skip
"""Small values for common fields; a configuration takes those that it has."""

LINEAR_THEN_FULL: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}

SHARED_CACHE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}

ROWS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": LINEAR_THEN_FULL,
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},  # the other one swaps its modules when it meets a short text
    "blt": {
        "encoder_config": {"hidden_size_global": 48},
        "decoder_config": {"hidden_size_global": 48},
        "patching_mode": "static",  # patches found by entropy have extents that depend on values
        "encoder_hash_byte_group_vocab": 40,
        "encoder_hash_byte_group_size": [3, 4],
    },
    "codegen": {
        "num_attention_heads": 8,
        "hidden_size": 96,
    },  # its heads come in four parts, one for each chip that it was trained on
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 48},
    },
    "deepseek_v4": {
        "head_dim": 16,
        "o_groups": 2,
        "o_lora_rank": 16,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 2},
    },
    "diffllama": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6},  # halves of the heads are paired
    "dots3_note_text": {"shared_experts_intermediate_size": 20},
    "falcon_h1": {"mamba_d_ssm": 96},
    "gemma3n_text": {
        **SHARED_CACHE,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8},
    "gemma4_unified_assistant": {"text_config": SHARED_CACHE, "backbone_hidden_size": 32},
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
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "linear_attention"],  # the indexed one loops over positions found by value
        "hc_count": 2,
        "hc_lowrank": 8,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 12,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [24, 24],
    },
    "rwkv": {"rescale_every": 0},
    "stablelm": {"partial_rotary_factor": 0.5},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "youtu": {"pad_token_id": None},  # loading it zeroes the row of the padding token
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "attention_hidden_size": 96,
        "attention_head_dim": 24,
        "num_key_value_heads": 4,
    },
    "zamba2": {"layer_types": ["mamba", "hybrid"], "layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type -> fields on top of the shared sizes; ``LEAVE`` stands for the configuration's own default. Fields of a
part stand in a dictionary under the part's name."""

PARTS: dict[str, str] = {
    "dots3_note": "text_config",
    "musicgen": "decoder",
    "musicgen_melody": "decoder",
    "qwen4_exp": "text_config",
}
"""Model type -> the part of its configuration that the mapped class is built from."""

INPUTS: dict[str, dict[str, Any]] = {
    "gemma4_unified_assistant": {
        "inputs_embeds": (3, 5, 64),
        "shared_kv_states": dict.fromkeys(("full_attention", "sliding_attention"), ((3, 2, 5, 12), (3, 2, 5, 12))),
    },
}
"""Model type -> inputs of its forward beyond token ids, as shapes; those named ``_ids`` are integers."""

_LOOPS = (
    "torch.export cannot trace transformers' loop over the experts that were picked: Could not guard on data-dependent "
    "expression Eq(u0, 0)"
)

NOT_TRACED: dict[str, str] = {
    "dbrx": _LOOPS,
    "gemma4_assistant": "transformers 5.23 cannot build it: The set of layer types producing a cache is different than "
    "the set of layer types using them",
    "gemma3n": "transformers cannot build its vision tower without timm and PIL",
    "jetmoe": "its experts split the text at places that are known only when it runs",
    "longcat_flash": _LOOPS,
}
"""Model type -> why it is not built small or not traced."""

WITHOUT: dict[str, set[str]] = {
    **{key: {"heads"} for key in ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm")},  # no attention
    **{key: {"heads"} for key in ("qwen4_exp", "qwen4_exp_text")},  # its layers that trace are linear attention
    "prophetnet": {"heads"},  # heads folded into positions
    "reformer": {"heads"},  # its local attention cuts the text into chunks, and folds heads into them
}
"""Model type -> what of heads, width and residual channels stays frozen or does not exist."""

NOT_SAVED: dict[str, str] = {
    "gemma4_unified_assistant": "transformers runs it on the states of another model only: inputs_embeds and "
    "shared_kv_states cannot be None",
}
"""Model type -> why the smaller model, which its graph describes, is not written as an artifact."""

SAVED_WITH: dict[str, str] = {
    **dict.fromkeys(("big_bird", "ctrl", "deepseek_v4", "hy_v4", "inkling2_text", "moshi"), "heads=kv"),
    **dict.fromkeys(("musicgen", "musicgen_melody", "prophetnet", "xglm", "xlnet"), "heads=kv"),
    **dict.fromkeys(("blt", "qwen4_exp", "qwen4_exp_text"), "heads=kv"),
    "codegen": "heads=query",  # the four parts that its heads come in are written in its code
    "roc_bert": "heads=kv",  # with half the residual width a plain configuration with other heads is nearly the same
    "trocr": "heads=off",  # its code takes the width of all heads to be the residual width
}
"""Model type -> options with which it is saved, where its code fixes more than most: ``heads=kv,channels=true``."""

WITHOUT_CACHE = frozenset({"blt", "qwen4_exp", "qwen4_exp_text", "xlstm"})
"""Dense, too, they cannot run with the cache that they make themselves."""

DECODES_OTHERWISE = WITHOUT_CACHE | {"cpmant", "musicgen", "musicgen_melody"}
"""Dense, too, they decode otherwise with a cache than without, or need more than one row of tokens."""

HEADS_STAY = frozenset({"bloom", "mpt"})
"""Their code computes a slope for every head (ALiBi), so that heads stay in artifacts."""


def names() -> list[str]:
    """Every model type that transformers maps to a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


class _Leave:
    """The configuration's own default."""


LEAVE = _Leave


def tiny_config(model_type: str) -> Any:
    """The small configuration that the mapped class of a model type is built from, its parts small too."""
    config_class = CONFIG_MAPPING[model_type]
    if model_type in PARTS:
        config_class = part_class(config_class.sub_configs_defaults[PARTS[model_type]])
    return _tiny(config_class, config_class.model_type)


def _tiny(config_class: Any, model_type: str, overrides: dict[str, Any] | None = None) -> Any:
    held = fields(config_class)
    chosen = {key: value for key, value in SIZES.items() if key in held}
    if "kv_lora_rank" in held:  # latent attention: every head has keys of its own, part of which rotates
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
        if "head_dim" in held:
            chosen["head_dim"] = SIZES["qk_rope_head_dim"]
    row = ROWS.get(model_type, {})
    for part, spec in getattr(config_class, "sub_configs_defaults", {}).items():
        found = part_class(spec)
        if found is not None:
            small = _tiny(found, found.model_type, row.get(part, {}))
            chosen[part] = small.to_dict()
    chosen |= {key: value for key, value in row.items() if key not in chosen or not isinstance(chosen[key], dict)}
    chosen |= overrides or {}
    return config_class(**{key: value for key, value in chosen.items() if value is not LEAVE})


def part_class(spec: Any) -> Any:
    """The configuration class of a part; None for one that may be missing."""
    if spec.optional:
        return None
    return CONFIG_MAPPING[spec.model_type] if spec.model_type else spec.config_class


def fields(config_class: Any) -> set[str]:
    """The names of what a configuration holds."""
    declared = {name for klass in config_class.__mro__ for name in getattr(klass, "__annotations__", {})}
    return declared | set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)


def tiny_model(model_type: str, *, device: str = "cpu", seed: int = 0) -> torch.nn.Module:
    """A small model with random weights in eval mode, its experts in the implementation that traces."""
    config = tiny_config(model_type)
    torch.manual_seed(seed)
    with torch.device(device):
        if model_type in PARTS:
            model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
            model = model_class._from_config(config, dtype=torch.float32).eval()
        else:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if device != "meta":
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3, generator=generator)
    return model


def inputs(model_type: str) -> dict[str, Any]:
    """What the forward of a model type needs beyond token ids."""
    return {key: _made(shape, key) for key, shape in INPUTS.get(model_type, {}).items()}


def _made(shape: Any, name: str) -> Any:
    if isinstance(shape, dict):
        return {key: _made(item, name) for key, item in shape.items()}
    if isinstance(shape[0], tuple):
        return tuple(_made(item, name) for item in shape)
    return torch.zeros(shape, dtype=torch.long if name.endswith("_ids") else torch.float32)
