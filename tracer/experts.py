"""Traces mixtures of experts in an implementation whose shapes do not depend on values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

TRACEABLE = "batched_mm"
"""The implementation of transformers in which every token selects the weights of its experts, without sorting."""


@contextmanager
def traceable_experts(module: nn.Module) -> Iterator[None]:
    """Inside, mixtures of experts use the implementation that can be traced; restored afterwards."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    before = [
        (model, model.get_experts_implementation()) for model in models if model._can_set_experts_implementation()
    ]
    try:
        for model, _ in before:
            model.set_experts_implementation(TRACEABLE)
        yield
    finally:
        for model, implementation in reversed(before):
            model.set_experts_implementation(implementation)
