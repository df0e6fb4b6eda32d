"""The implementation in which transformers' mixtures of experts compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..ir.repairs import ConfigView
from .model.kinds import is_config

BATCHED = "batched_mm"
"""Every token picks the weights of its experts, without sorting: no extent depends on values, so that it traces and
runs without weights."""
ONE_BY_ONE = "eager"
"""A loop over the experts, so that each one's calls can be told apart."""


def configs_of(module: nn.Module) -> list[Any]:
    """The configurations that a module and those inside it hold, each once, outer ones first."""
    held = (_shared(value) for part in module.modules() for value in vars(part).values())
    return list({id(config): config for config in held if is_config(config)}.values())


def _shared(value: Any) -> Any:
    while isinstance(value, ConfigView):
        value = vars(value)["_shared"]
    return value


def set_experts(configs: Iterable[Any], implementation: str) -> None:
    """Modules read it from their configuration at every call. One that names none has no experts, and stays so."""
    for config in configs:
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = {"": implementation}  # of this one only, not of those inside it


@contextmanager
def experts_as(implementation: str, *modules: nn.Module) -> Iterator[None]:
    """Inside, the mixtures of experts of some modules compute in an implementation; put back afterwards."""
    configs = [config for module in modules for config in configs_of(module)]
    before = [(config, getattr(config, "_experts_implementation", None)) for config in configs]
    try:
        set_experts(configs, implementation)
        yield
    finally:
        for config, own in before:
            if own is not None:
                set_experts([config], own)
