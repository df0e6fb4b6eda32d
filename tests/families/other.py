"""Tiny configurations of encoders, encoder-decoders, vision and audio models: one row for each model type."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fxprune.tracer.module import parse_example

from . import audio, convolutional, text, towers, vision
from .causal_lm import SIZES
from .row import Row

TINY: dict[str, Any] = {
    **SIZES,
    "image_size": 32, "patch_size": 8, "num_channels": 3, "num_labels": 7, "decoder_hidden_size": 48,
    "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 40,
    "projection_dim": 20, "encoder_hidden_size": 48, "d_kv": 12, "num_decoder_layers": 2, "use_cache": False,
    "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    "hidden_dim": 40, "use_mean_pooling": True, "num_encoder_layers": 2, "num_frames": 4, "tubelet_size": 2,
}  # fmt: skip
"""Small values for common fields; a configuration takes those that it has."""

ROWS: dict[str, Row] = {**text.ROWS, **vision.ROWS, **towers.ROWS, **convolutional.ROWS, **audio.ROWS}
"""Model type -> how it is built and called."""

NOT_TRACED: dict[str, str] = {
    "encodec": "its padding depends on lengths read from the mask",
    "nllb-moe": "its router converts its own weights inside forward",
    "superpoint": "as many keypoints as it finds",
    "switch_transformers": "its router converts its own weights inside forward",
    "vilt": "it chooses patches at random, as many as the mask shows",
}
"""Model type -> why it is not traced."""

WITHOUT: dict[str, set[str]] = {
    **{key: {"channels"} for key in ("dinov3_vit", "vitdet")},  # no head: the residual stream is what they return
    **{key: {"heads"} for key in ("focalnet", "mobilevitv2", "patchtsmixer", "poolformer", "swiftformer")},  # no heads
    **{key: {"heads"} for key in (*convolutional.ROWS, "dac", "upernet") if key not in NOT_TRACED},  # no attention
    **{key: {"heads", "width"} for key in ("mobilenet_v1", "textnet")},  # every width goes on to the next block
    "longformer": {"heads"},  # its windows fold heads into positions
    "fnet": {"heads"},  # a Fourier transform in the place of attention
    "squeezebert": {"width"},  # the groups of its convolutions are its heads, its widths lie within them
}
"""Model type -> what of heads, width and residual channels does not exist or stays frozen."""

SAMPLE = (
    "bert", "deberta-v2", "electra", "modernbert", "roberta", "bart", "marian", "t5", "whisper",
    "beit", "dinov2", "segformer", "swin", "vit", "clip", "siglip", "altclip",
    "bit", "convnextv2", "efficientnet", "regnet", "resnet", "audio-spectrogram-transformer", "wav2vec2", "patchtst",
)  # fmt: skip
"""Rows that run by default, a fifth with some of every kind; the others run under the marker ``slow``."""

NOT_SAVED: dict[str, str] = {
    "pvt_v2": "its attention reshapes to widths that no attribute of it holds; its graph describes the smaller model",
}
"""Model type -> why the smaller model, which its graph describes, is not written as an artifact."""

SAVED_WITH: dict[str, str] = {
    **dict.fromkeys(("big_bird", "bros", "canine", "data2vec-audio", "hiera", "marian", "speech_to_text"), "heads=kv"),
    **dict.fromkeys(("detr", "glpn"), "heads=kv,ffn=false"),  # widths of parts of them are one number in their code
    "squeezebert": "heads=query",  # its convolutions have as many groups as it was built with
    "levit": "heads=off,channels=true",  # its code remembers the biases of all heads
    **dict.fromkeys(("mgp-str", "pegasus_x"), "heads=off"),
    "wavlm": "heads=kv,ffn=false",  # the groups of a convolution are a number in its code
}
"""Model type -> options with which it is saved, where its code fixes the residual width."""

HALF = frozenset({"bit", "convbert", "eurobert", "parakeet_encoder", "squeezebert", "t5gemma"})
"""A quarter of their heads, or of the channels in a group of a norm, is no whole unit; half of them is."""

STAYS: dict[str, set[str]] = {
    **{name: {"width"} for name in ("detr", "glpn", "wavlm")},
    **{name: {"heads"} for name in ("levit", "mgp-str", "pegasus_x")},
    "swin2sr": {"heads"},  # a quarter of two is none, and its code remembers positions for all
}
"""Model type -> what of heads and width stays whole in its artifact."""


def tiny_config(name: str) -> Any:
    """The small configuration of a row, its parts small too."""
    return _tiny(CONFIG_MAPPING[name], ROWS[name].config)


def _tiny(config_class: Any, overrides: Mapping[str, Any]) -> Any:
    default = config_class()
    fields = {*default.to_dict(), *config_class.attribute_map}
    given = {config_class.attribute_map.get(key, key) for key in overrides}
    chosen = {
        key: value
        for key, value in TINY.items()
        if key in fields and config_class.attribute_map.get(key, key) not in given
    }
    for part in config_class.sub_configs:
        held = getattr(default, part, None)
        if isinstance(held, transformers.PreTrainedConfig) and "model_type" not in (overrides.get(part) or {}):
            chosen[part] = _tiny(type(held), overrides.get(part) or {}).to_dict()
    chosen |= {
        key: value for key, value in overrides.items() if key not in chosen or key not in config_class.sub_configs
    }
    return config_class(**chosen)


def tiny_model(name: str, *, seed: int = 0) -> torch.nn.Module:
    """A small model with random weights in eval mode."""
    torch.manual_seed(seed)
    model: torch.nn.Module = getattr(transformers, ROWS[name].model)(tiny_config(name)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def inputs(name: str) -> dict[str, Any]:
    """Example inputs of a row by name."""
    found = parse_example(ROWS[name].inputs)
    assert isinstance(found, dict)
    for key, tensor in found.items():
        if tensor.dtype == torch.long:  # no token with a meaning of its own, such as padding
            found[key] = 3 + torch.arange(tensor.numel()).view(tensor.shape) % 29
    takes = inspect.signature(getattr(transformers, ROWS[name].model).forward).parameters
    return found | ({"use_cache": False} if "use_cache" in takes else {})
