"""Rotary positions as llama.cpp is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...ir.errors import RequestError
from .architectures import OTHER_FORMAT, Architecture

FACTORS = "rope_freqs.weight"
"""For each pair of channels, by how much it turns more slowly than the base says."""

_PER_KIND = "full_attention"
"""Where layers of several kinds rotate in their own ways, the kind that sees all positions."""

_WINDOWED = "sliding_attention"


@dataclass(frozen=True)
class Rotation:
    """What is rotated.

    Attributes:
        channels: of a head, that are rotated; 0 where positions are not rotary.
        settings: key in the file, without the architecture -> value.
        factors: float32 ``[channels / 2]`` for :data:`FACTORS`; None when all are 1.
    """

    channels: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    factors: torch.Tensor | None = None


def read_rotation(model: Any, row: Architecture, size: int, name: str) -> Rotation:
    """The rotation of a model.

    Args:
        model: a ``PreTrainedModel``.
        row: its architecture.
        size: of a head of queries.
        name: the model, for messages.

    Raises:
        RequestError: llama.cpp cannot rotate so.
    """
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None)
    if not parameters:
        return Rotation()
    settings: dict[str, Any] = {}
    if _PER_KIND in parameters:
        windowed = parameters.get(_WINDOWED) or {}
        if windowed.get("rope_type", "default") != "default":
            raise _unknown(name, row, windowed["rope_type"])
        settings["rope.freq_base_swa"] = float(windowed["rope_theta"])
        parameters = parameters[_PER_KIND]
    channels = int(size * parameters.get("partial_rotary_factor", 1.0))
    settings |= {"rope.dimension_count": channels, "rope.freq_base": float(parameters["rope_theta"])}
    kind = parameters.get("rope_type", "default")
    if kind == "linear":
        settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
    elif kind == "yarn":
        settings |= _yarn(parameters, row, name)
    elif kind == "llama3" and row.rope_factors:
        return Rotation(channels, settings, _factors(model, channels, float(parameters["rope_theta"])))
    elif kind != "default":
        raise _unknown(name, row, kind)
    return Rotation(channels, settings)


def _unknown(name: str, row: Architecture, kind: str) -> RequestError:
    return RequestError(f"{name} rotates by {kind!r}, which is not written for llama.cpp's {row.name}", OTHER_FORMAT)


def _yarn(parameters: Mapping[str, Any], row: Architecture, name: str) -> dict[str, Any]:
    odd = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if parameters.get(key) is not None]
    if odd or parameters.get("truncate", True) is not True:
        raise _unknown(name, row, f"yarn with {odd[0] if odd else 'truncate'}")
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(parameters["factor"]),
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
        "rope.scaling.yarn_beta_fast": float(parameters.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(parameters.get("beta_slow") or 1.0),
    }


def _factors(model: Any, channels: int, base: float) -> torch.Tensor:
    """From the frequencies that the model itself has computed."""
    held = next(
        module.inv_freq for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)
    )
    plain = base ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    return (plain / held.double()).float()
