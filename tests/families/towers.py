"""Models of image and text together: tiny configurations."""

from __future__ import annotations

from typing import Any

from .convolutional import EFFICIENT
from .row import Row

TEXT_AND_IMAGE = "input_ids=int64[5,7],pixel_values=float32[2,3,32,32]"
TOWERS: dict[str, Any] = {
    "text_config": {"hidden_size": 40, "num_attention_heads": 4, "eos_token_id": 1},
    "vision_config": {"hidden_size": 48},
}

ROWS: dict[str, Row] = {
    "align": Row("AlignModel", TEXT_AND_IMAGE, {"projection_dim": 24, "vision_config": EFFICIENT}, "logits_per_image"),
    "altclip": Row(
        "AltCLIPModel",
        TEXT_AND_IMAGE,
        {**TOWERS, "text_config": {"hidden_size": 40, "project_dim": 40}},
        "logits_per_image",
    ),
    "blip": Row(
        "BlipForImageTextRetrieval",
        "input_ids=int64[2,7],pixel_values=float32[2,3,32,32]",
        {"vision_config": {}, "text_config": {"encoder_hidden_size": 48}, "image_text_hidden_size": 20},
        "itm_score",
    ),
    "chinese_clip": Row("ChineseCLIPModel", TEXT_AND_IMAGE, TOWERS, "logits_per_image"),
    "clip": Row("CLIPModel", TEXT_AND_IMAGE, TOWERS, "logits_per_image"),
    "clipseg": Row(
        "CLIPSegForImageSegmentation",
        "input_ids=int64[2,7],pixel_values=float32[2,3,32,32]",
        {
            **TOWERS,
            "extract_layers": [0, 1],
            "reduce_dim": 16,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 24,
        },
    ),
    "flava": Row("FlavaModel", "input_ids=int64[2,7],pixel_values=float32[2,3,32,32]", {}, "multimodal_embeddings"),
    "groupvit": Row("GroupViTModel", TEXT_AND_IMAGE, {}, "logits_per_image"),
    "owlvit": Row("OwlViTModel", "input_ids=int64[4,7],pixel_values=float32[2,3,32,32]", TOWERS, "logits_per_image"),
    "siglip": Row(
        "SiglipModel",
        TEXT_AND_IMAGE,
        {"text_config": {"hidden_size": 48}, "vision_config": {"hidden_size": 48}},
        "logits_per_image",
    ),
    "vilt": Row(
        "ViltForImagesAndTextClassification",
        "input_ids=int64[2,7],pixel_values=float32[2,1,3,32,32]",
        {"num_images": 1},
    ),
}
