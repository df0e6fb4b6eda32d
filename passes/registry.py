"""Every pass and analysis there is, in one visible list: what stands here exists, whatever else is imported."""

from __future__ import annotations

from .base import Pass
from .compensate import Compensate
from .couple import couple
from .drop import Drop
from .lora import Lora
from .magnitude import Magnitude
from .manager import Analysis
from .random import Random
from .taylor import Taylor

PASSES: tuple[type[Pass], ...] = (Random, Magnitude, Taylor, Drop, Compensate, Lora)

ANALYSES: tuple[Analysis, ...] = (Analysis("couple", "coupling", couple),)
