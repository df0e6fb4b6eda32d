"""A model that a Trainer shards among processes (FSDP2), and that is whole and plain again afterwards.

Sharding replaces the parameters of a module by distributed ones, its class by a subclass, and adds hooks. PyTorch has
no way back, so what was there before is kept and put back, with the trained values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def whole_again(model: nn.Module) -> Iterator[None]:
    """Inside, parameters may be sharded; afterwards they are the objects that they were, with the values of all shards.

    All processes must leave it together: shards are gathered then, unless an exception ends the block, after which the
    values are of no use. A model that nobody sharded stays as it is.
    """
    before = [(module, type(module), _attributes(module)) for module in model.modules()]
    failed = True
    try:
        yield
        failed = False
    finally:
        if is_sharded(model):
            for module, kind, attributes in before:
                now = dict(module._parameters)
                module.__class__ = kind
                vars(module).clear()
                vars(module).update(attributes)
                if not failed:
                    _give_values(module, now)


def is_sharded(model: nn.Module) -> bool:
    """Whether some parameter of a model is distributed among processes."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds, with copies of the dictionaries to which sharding adds."""
    return {
        name: type(value)(value) if type(value) in (dict, OrderedDict) else value
        for name, value in vars(module).items()
    }


def _give_values(module: nn.Module, sharded: dict[str, nn.Parameter | None]) -> None:
    """Give a module's parameters the values of its sharded ones."""
    for name, parameter in module._parameters.items():
        held: Any = sharded.get(name)
        if parameter is None or held is None:
            continue
        whole = held.full_tensor() if hasattr(held, "full_tensor") else held
        with torch.no_grad():
            # Its own memory may have gone to a shard.
            parameter.data = whole.detach().to(parameter.dtype)
            parameter.requires_grad_(held.requires_grad)
