"""Rotary tables that grow with the longest position: traced as they are below the length that the model was trained on.

The rule of such a table computes other frequencies once a position is beyond that length, so that a value decides what
runs, which no static graph can hold. Which units are coupled does not depend on it: the table stands for head channels,
and only its numbers change. The modules keep the rule; see ``calls.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..runtime.streaming.left_as_found import left_as_found
from .calls import calls


@contextmanager
def steady_frequencies(model: nn.Module) -> Iterator[None]:
    """Inside, rotary tables stay as they are below the original length, whatever the positions.

    A rule for one kind of layer in a mapping of several is changed alone.
    """
    known = calls()["steady"]
    name, values, tensors = known["rule"], known["values"], known["tensors"]
    growing = [module for module in model.modules() if _steady(vars(module).get(name), values) is not None]
    with left_as_found(*growing):
        for module in growing:
            setattr(module, name, _steady(vars(module)[name], values))
            for buffer in list(module._buffers):
                original = _original(module, buffer, tensors)
                if original is not None:  # it may have run beyond the original length
                    module._buffers[buffer] = original
        yield


def _steady(rule: Any, values: Mapping[str, str]) -> Any:
    """The rule that does not grow; None for one that does not grow anyway."""
    if isinstance(rule, str):
        return values.get(rule)
    if isinstance(rule, Mapping):
        found = {kind: _steady(own, values) for kind, own in rule.items()}
        return {kind: found[kind] or rule[kind] for kind in rule} if any(found.values()) else None
    return None


def _original(module: nn.Module, buffer: str, tensors: Mapping[str, str]) -> torch.Tensor | None:
    """What the module keeps of a buffer from below the original length."""
    for name, original in tensors.items():
        if buffer.endswith(name) and not buffer.endswith(original):
            kept = getattr(module, buffer.removesuffix(name) + original, None)
            return kept if isinstance(kept, torch.Tensor) else None
    return None
