"""All passes and analyses, in one explicit list: a pass exists if and only if it is listed here."""

from __future__ import annotations

from .activation import Activation
from .base import Pass
from .compensate import Compensate
from .couple import couple
from .distill import Distill
from .drop import Drop
from .finetune import Finetune
from .fisher import Fisher
from .flap import Flap
from .generate import Generate
from .lora import Lora
from .magnitude import Magnitude
from .manager import Analysis
from .obs import Obs
from .random import Random
from .taylor import Taylor
from .wanda import Wanda

PASSES: tuple[type[Pass], ...] = (
    Generate, Random, Magnitude, Taylor, Fisher, Wanda, Flap, Activation, Obs, Drop, Compensate, Lora,
    Finetune, Distill,
)  # fmt: skip

ANALYSES: tuple[Analysis, ...] = (Analysis("couple", "coupling", couple),)
