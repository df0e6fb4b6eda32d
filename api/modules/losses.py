"""The losses that scores of a module are computed from: of the user's function, alone or on every batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...tracer.inputs.users_loss import users_loss
from ..request_checks import check_loss, list_batches

LossFunction = Callable[..., torch.Tensor]


def losses_of(
    loss: LossFunction | None, calib: Any, where: torch.device | None
) -> list[Callable[[nn.Module], torch.Tensor]]:
    """One loss without data, or one for every batch; none without a function.

    Args:
        loss: of the user's.
        calib: its batches, if it takes some.
        where: the device that they are moved to.
    """
    check_loss(loss, named=False)
    if loss is None:
        return []
    if calib is None:
        return [users_loss(loss)]
    called = users_loss(loss, batches=True)

    def on(module: nn.Module, batch: Any) -> torch.Tensor:
        found: torch.Tensor = called(module, batch)
        return found

    return [functools.partial(on, batch=moved_inputs(batch, where)) for batch in list_batches(calib, "calib")]


def moved_inputs(value: Any, where: torch.device | None) -> Any:
    """The tensors in a value on a device; the value itself when None."""
    if where is None:
        return value
    return pytree.tree_map(lambda leaf: leaf.to(where) if isinstance(leaf, torch.Tensor) else leaf, value)
