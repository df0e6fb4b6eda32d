"""Modules built without values: parameters on the meta device, buffers as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def empty_weights() -> Iterator[None]:
    """Inside, every parameter that a module registers goes to the meta device, in a new object of its class.

    Buffers keep their values, as rotary tables must. A parameter that two modules share is one object in each of them
    afterwards, so that the caller ties weights again.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None and not param.is_meta:
            moved = type(param)(param.to("meta"), requires_grad=param.requires_grad)
            vars(moved).update(vars(param))
            self._parameters[name] = moved

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
