"""All passes, in one explicit list: a pass exists if and only if it is listed here."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from ..ir.call_text import is_name
from ..ir.options import options_of
from ..ir.plugins import Table, joined
from .base import Pass
from .calibrate.generate import Generate
from .drop.drop import Drop
from .recover.compensate import Compensate
from .recover.distill import Distill
from .recover.finetune import Finetune
from .recover.lora import Lora
from .score.activation import Activation
from .score.experts.activation_norm import ActivationNorm
from .score.experts.expert_channels import ExpertChannels
from .score.experts.frequency import Frequency
from .score.experts.reap import Reap
from .score.fisher import Fisher
from .score.flap import Flap
from .score.magnitude import Magnitude
from .score.obs import Obs
from .score.random import Random
from .score.taylor import Taylor
from .score.wanda import Wanda
from .turn.turn import TurnValues
from .vocabulary.vocabulary import FewerTokens

PASSES: tuple[type[Pass], ...] = (
    FewerTokens, Generate, TurnValues, Random, Magnitude, Taylor, Fisher, Wanda, Flap, Activation, Obs, Reap,
    ActivationNorm, Frequency, ExpertChannels, Drop, Compensate, Lora, Finetune, Distill,
)  # fmt: skip
"""fxprune's own passes."""


@functools.cache
def pass_table() -> Table[type[Pass]]:
    """Every pass by name: fxprune's own, and those that installed packages bring as ``fxprune.passes``.

    Raises:
        FxpruneError: two passes of one name.
    """
    return joined("pass", "fxprune.passes", {cls.name: cls for cls in PASSES}, _read)


def all_passes() -> tuple[type[Pass], ...]:
    """Every pass, as pipeline text is read with."""
    return tuple(pass_table().values())


def brought(pipeline: Iterable[Pass]) -> dict[str, str]:
    """The passes of a pipeline that installed packages bring -> package and version."""
    origins = pass_table().origins
    found = {step.name: origins[step.name] for step in pipeline if step.name in origins}
    return {name: f"{origin.package} {origin.version}" for name, origin in found.items()}


def _read(found: Any) -> Mapping[str, type[Pass]]:
    """The pass that an entry point stands for, when it can be one."""
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise TypeError("expected a class that derives from fxprune.passes.base.Pass")
    own = vars(found)
    if "__dataclass_params__" not in own:
        raise TypeError(f"{found.__name__} is no dataclass: write @dataclass(frozen=True, kw_only=True) above it")
    if not is_name(found.name) or not found.kind:
        raise ValueError(f"{found.name!r} cannot be the name of a pass")
    options_of(found)
    found()  # every option has a default
    return {found.name: found}
