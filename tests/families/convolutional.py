"""Convolutional networks: tiny configurations."""

from __future__ import annotations

from typing import Any

from .row import IMAGE, IMAGE_64, Row

STAGES: dict[str, Any] = {"hidden_sizes": [16, 24], "depths": [1, 2]}
EFFICIENT: dict[str, Any] = {
    "width_coefficient": 0.25, "depth_coefficient": 0.3, "kernel_sizes": [3, 3], "in_channels": [32, 64],
    "out_channels": [64, 96], "strides": [1, 2], "num_block_repeats": [1, 2], "expand_ratios": [1, 4],
    "depthwise_padding": [],
}  # fmt: skip

ROWS: dict[str, Row] = {
    "bit": Row(
        "BitForImageClassification", IMAGE, {**STAGES, "embedding_size": 8, "hidden_sizes": [16, 32], "num_groups": 4}
    ),
    "convnext": Row("ConvNextForImageClassification", IMAGE, {**STAGES, "num_stages": 2, "patch_size": 4}),
    "convnextv2": Row("ConvNextV2ForImageClassification", IMAGE, {**STAGES, "num_stages": 2, "patch_size": 4}),
    "dinov3_convnext": Row(
        "DINOv3ConvNextModel", IMAGE_64, {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}, ""
    ),
    "efficientnet": Row("EfficientNetForImageClassification", IMAGE, {**EFFICIENT, "hidden_dim": 320}),
    "hgnet_v2": Row(
        "HGNetV2ForImageClassification",
        IMAGE_64,
        {
            "stem_channels": [3, 8, 12],
            "embedding_size": 12,
            "hidden_sizes": [16, 20, 24, 28],
            "depths": [1, 1, 1, 1],
            "stage_in_channels": [12, 16, 20, 24],
            "stage_mid_channels": [6, 8, 10, 12],
            "stage_out_channels": [16, 20, 24, 28],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
            "stage_downsample": [False, True, True, True],
            "stage_light_block": [False, False, True, True],
            "stage_kernel_size": [3, 3, 5, 5],
        },
    ),
    "mobilenet_v1": Row("MobileNetV1ForImageClassification", IMAGE_64, {"depth_multiplier": 0.25, "min_depth": 8}),
    "mobilenet_v2": Row(
        "MobileNetV2ForImageClassification", IMAGE_64, {"depth_multiplier": 0.25, "finegrained_output": False}
    ),
    "regnet": Row("RegNetForImageClassification", IMAGE, {**STAGES, "embedding_size": 8, "groups_width": 4}),
    "resnet": Row("ResNetForImageClassification", IMAGE, {**STAGES, "embedding_size": 8}),
    "superpoint": Row("SuperPointForKeypointDetection", IMAGE),
    "textnet": Row("TextNetForImageClassification", IMAGE_64, {}),
}
