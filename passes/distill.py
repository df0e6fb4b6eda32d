"""distill: recovery training of all weights towards the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import option
from .finetune import Finetune


@dataclass(frozen=True, kw_only=True)
class Distill(Finetune):
    """Train what is left to predict what the dense model predicts (Hinton et al., arXiv 1503.02531; for pruned language
    models Minitron, arXiv 2407.14679).

    The text is only where predictions are compared: it need not be what the dense model was trained on, but should be
    like it.
    """

    name: ClassVar[str] = "distill"

    lr: float = option(1e-3, "peak learning rate, falling linearly to 0")
    batch: int = option(16, "examples in an optimizer step")
    teacher: float = option(
        1.0, "share of the loss that is the distance from the dense model's predictions; the rest is the text's"
    )
