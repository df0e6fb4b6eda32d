"""Every pass and analysis there is, in one visible list: what stands here exists, whatever else is imported."""

from __future__ import annotations

from .base import Pass
from .couple import couple
from .lora import Lora
from .manager import Analysis

PASSES: tuple[type[Pass], ...] = (Lora,)

ANALYSES: tuple[Analysis, ...] = (Analysis("couple", "coupling", couple),)
