"""What a row of the tables says, and the inputs that many rows share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT = "input_ids=int64[3,5]"
PAIR = "input_ids=int64[3,5],decoder_input_ids=int64[3,7]"
IMAGE = "pixel_values=float32[2,3,32,32]"
IMAGE_64 = "pixel_values=float32[2,3,64,64]"


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        model: its class, with the head whose output counts.
        inputs: as ``fxprune.tracer.module.parse_example`` reads them.
        config: fields on top of the tiny ones, those of a part in a dictionary under its name.
        output: the output that counts, all of them when empty.
    """

    model: str
    inputs: str
    config: Mapping[str, Any] = field(default_factory=dict)
    output: str = "logits"
