"""Tiny configurations of models that make text from images and text: what each model type needs beyond the shared small
sizes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .causal_lm import LEAVE, SIZES, fields, part_class

IMAGE_TOKEN = 7

TINY: dict[str, Any] = {
    **SIZES,
    "image_size": 32, "patch_size": 8, "num_channels": 3, "in_channels": 3, "temporal_patch_size": 2, "depth": 2,
    "projection_dim": 24, "image_token_id": IMAGE_TOKEN, "image_token_index": IMAGE_TOKEN, "video_token_id": 8,
    "video_token_index": 8, "audio_token_id": 9, "audio_token_index": 9, "out_hidden_size": 48,
    "text_hidden_size": 48, "mm_tokens_per_image": 4, "num_query_tokens": 4, "encoder_hidden_size": 48, "d_kv": 12,
    "linear_key_head_dim": 14, "linear_value_head_dim": 14, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 14, "linear_num_heads": 4,
}  # fmt: skip
"""Small values for common fields; a configuration takes those that it has."""

MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
}

HALF_MROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
IN_TEXT_WIDTH: dict[str, Any] = {"projection_dim": 48, "vision_config": {"projection_dim": 48}}
PINPOINTS: dict[str, Any] = {"image_grid_pinpoints": [[32, 64], [64, 32]]}

VQ: dict[str, Any] = {
    "num_embeddings": 10, "base_channels": 32, "latent_channels": 8, "channel_multiplier": [1, 1], "num_res_blocks": 1,
    "embed_dim": 8, "codebook_size": 10, "resolution": 32, "hidden_size": 32,
}  # fmt: skip
OMNI: dict[str, Any] = {"vision_start_token_id": 10, "audio_start_token_id": 11}

ROWS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "glm4v_text",
            "glm_ocr_text", "paddleocr_vl_text", "qwen2_5_omni_text", "qwen3_omni_moe_text", "cosmos3_edge_text",
            "hunyuan_vl_text", "cosmos3_omni_text",
        ),
        MROPE,
    ),
    "glm4v_moe_text": HALF_MROPE,
    "paligemma": IN_TEXT_WIDTH,
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "chameleon": {"vq_config": VQ, "vocabulary_map": {
        "<image>": IMAGE_TOKEN, **{f"IMGIMG{chr(65 + n)}Z": 10 + n for n in range(10)},
    }},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        },
    },
    "deepseek_ocr2": {"vision_config": {
        "encoder_config": {"num_key_value_heads": 4},
        "sam_config": {"global_attn_indexes": [1], "output_channels": 24, "downsample_channels": [32, 48]},
    }},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [1], "output_channels": 24}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_key_value_heads": 4},
    "dots3_note_text": {"shared_experts_intermediate_size": 20},
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 48, "adapter_out_dim": 48,
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 48, "adapter_out_dim": 48},
    "evolla": {
        "aligner_num_add_layers": 1, "resampler_depth": 1, "resampler_num_latents": 4, "resampler_dim_head": 12,
        "resampler_heads": 4, "protein_encoder_config": {
            "vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 40, "max_position_embeddings": 64,
        },
    },
    "ernie4_5_vl_moe_text": {**MROPE, "moe_intermediate_size": [24, 24], "mlp_layer_types": ["dense", "sparse"]},
    "fuyu": {"num_channels": 3},
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision", "num_key_value_heads": 4, "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
    },
    "gemma4_text": {"vocab_size_per_layer_input": 131, "hidden_size_per_layer_input": 8},
    "gemma4_unified": {
        "vision_config": {
            "model_type": "gemma4_unified_vision", "mm_embed_dim": 48, "mm_posemb_size": 16, "output_proj_dims": 48,
        },
    },
    "glm5_next_text": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "head_dim": 0},
    "granite4_vision": {
        **PINPOINTS, "vision_config": {"hidden_size": 64}, "downsample_rate": "1/2", "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0, 1],
    },
    "kimi_k25": {"projection_hidden_size": 48},
    "mllama": {
        "vision_config": {
            "num_global_layers": 2, "attention_heads": 4, "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 144,
        },
        "text_config": {"cross_attention_layers": [1]},
    },
    "muse_glimmer": {"out_hidden_size": 192, "projector_hidden_size": 40, "vision_config": {
        "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16,
    }},
    "qwen2_5_omni_thinker": OMNI,
    "qwen3_omni_moe_thinker": OMNI,
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "janus": {"vq_config": VQ, "vision_config": {"projection_dim": 48}},
    "llama4": {"vision_config": {
        "intermediate_size": 192, "projector_input_dim": 40, "projector_output_dim": 40, "vision_output_dim": 40,
    }},
    "florence2": {"text_config": {"max_position_embeddings": 1024}, "vision_config": {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [24, 48], "num_heads": [2, 4], "num_groups": [2, 4],
        "window_size": 2, "projection_dim": 48,
    }},
    "pp_formulanet": {"vision_config": {
        "decoder_hidden_size": 48, "post_conv_in_channels": 24, "post_conv_mid_channels": 32,
        "post_conv_out_channels": 40, "output_channels": 24, "mlp_dim": 40, "global_attn_indexes": [1],
    }},
    "unlimited_ocr": {"vision_config": {"sam_config": {
        "global_attn_indexes": [1], "output_channels": 24, "downsample_channels": [32, 48],
    }}},
    "molmo2": {
        "image_patch_id": IMAGE_TOKEN, "vision_config": {"image_size": [32, 32], "num_key_value_heads": 4},
        "adapter_config": {"vision_feature_layer": [-1], "text_hidden_size": 48},
    },
    "muse_spark": {"out_hidden_size": 192, "projector_hidden_size": 40, "vision_config": {
        "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16,
    }, "audio_config": {"num_hidden_layers": 4, "patch_sizes": [16, 6, 5, 4], "hidden_sizes": [16, 16, 16, 16]}},
    "nemotron_h_omni": {"vision_hidden_size": 48, "projector_hidden_size": 40,
        "video_temporal_patch_size": 2, "vision_config": {"video_temporal_patch_size": 2}},
    "emu3": {"vq_config": VQ, "vocabulary_map": {
        "<image>": IMAGE_TOKEN, "<|extra_200|>": 6, **{f"<|visual token {n:06}|>": 10 + n for n in range(10)},
    }},
    "diffusion_gemma": {"text_config": {"top_k_experts": 2}, "vision_config": {
        "num_key_value_heads": 4, "pooling_kernel_size": 2, "position_embedding_size": 16,
    }},
    "llava_next": PINPOINTS,
    "llava_next_video": PINPOINTS,
    "llava_onevision": PINPOINTS,
}  # fmt: skip
"""Model type, or that of a part -> fields on top of the shared sizes; ``LEAVE`` stands for the configuration's own
default. Fields of a part stand in a dictionary under the part's name."""

NOT_TRACED: dict[str, str] = {
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), "its vision tower needs timm"),
    "diffusion_gemma": "its output holds the cache of its encoder, which is no tensor",
    "granite4_vision": "it reads inner states of its tower, which transformers does not record in a trace",
    "inkling_mm_model": "its vision tower needs scipy",
}
"""Model type -> why it is not built small or not traced with images."""

WITHOUT: dict[str, set[str]] = {
    "lfm3_vl": {"heads"},  # its two layers here are convolutions
    "udop": {"channels"},  # its residual width meets positions of boxes
}
"""Model type -> what of heads, width and residual channels stays frozen or does not exist."""

NOT_SAVED: dict[str, str] = {
    "pp_chart2table": "transformers refuses a class whose `config_class` is that of another model type",
    "shieldgemma2": "what transformers saves of this class, it does not load again",
}
"""Model type -> why the smaller model, which its graph describes, is not written as an artifact."""

SAVED_WITH: dict[str, str] = {}
"""Model type -> options with which it is saved, where its code fixes more than most: ``heads=kv,channels=true``."""

SAMPLE = ("llava", "qwen2_vl", "gemma3", "idefics3", "mllama", "blip-2", "internvl", "llava_next")
"""Rows that run by default: one of every way of reading images; the others run under the marker ``slow``."""


def names() -> list[str]:
    """Every model type that transformers maps to a model of images and text that makes text."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """The small configuration of a model type, its parts small too."""
    return _tiny(CONFIG_MAPPING[model_type], ROWS.get(model_type, {}))


def _tiny(config_class: Any, overrides: dict[str, Any]) -> Any:
    held = fields(config_class)
    chosen = {key: value for key, value in TINY.items() if key in held}
    if "kv_lora_rank" in held:  # latent attention: every head has keys of its own, part of which rotates
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
        if "head_dim" in held:
            chosen["head_dim"] = TINY["qk_rope_head_dim"]
    overrides = {**ROWS.get(config_class.model_type, {}), **overrides}
    for part, spec in getattr(config_class, "sub_configs_defaults", {}).items():
        own = overrides.get(part)
        if own is LEAVE:
            continue
        found = part_class(spec)
        if isinstance(own, dict) and "model_type" in own:
            found = CONFIG_MAPPING[own["model_type"]]
        if found is not None:
            chosen[part] = _tiny(found, own or {}).to_dict()
    chosen |= {key: value for key, value in overrides.items() if key not in chosen or not isinstance(chosen[key], dict)}
    return config_class(**{key: value for key, value in chosen.items() if value is not LEAVE})


def tiny_model(model_type: str, *, device: str = "cpu", seed: int = 0) -> torch.nn.Module:
    """A small model with random weights in eval mode."""
    torch.manual_seed(seed)
    model_class = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
    with torch.device(device):
        model: torch.nn.Module = model_class._from_config(tiny_config(model_type), dtype=torch.float32).eval()
    if device != "meta":
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3, generator=generator)
    return model
