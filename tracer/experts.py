"""Mixtures of experts are traced in an implementation whose extents do not depend on values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

TRACEABLE = "batched_mm"
"""Of the implementations that transformers offers: every token picks the weights of its experts, without sorting."""


@contextmanager
def traceable_experts(module: nn.Module) -> Iterator[None]:
    """Inside, the mixtures of experts of a module compute in the implementation that traces; put back afterwards."""
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
