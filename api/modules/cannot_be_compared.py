"""Modules whose outputs cannot be compared with those of a graph, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...ir.errors import RequestError
from ...runtime.tensors import tensors_by_name


def check_weights(module: nn.Module) -> None:
    """Refuse a module whose weights are not there.

    Raises:
        RequestError: naming the first.
    """
    meta = next((name for name, tensor in tensors_by_name(module).items() if tensor.is_meta), None)
    if meta is not None:
        raise RequestError(
            f"{type(module).__name__} has no weights: {meta!r} is on the meta device",
            "load them into it, or build it outside of torch.device('meta')",
        )


def not_a_number(module: nn.Module, inputs: Sequence[torch.Tensor]) -> RequestError:
    """What to raise where a module gives NaN on the example.

    Args:
        module: as it was given.
        inputs: the tensors of the example, in order.
    """
    name = type(module).__name__
    for number, tensor in enumerate(inputs):
        if bool(tensor.isnan().any()):
            return RequestError(f"{name} gives NaN on the example: input {number} holds NaN", "give one without")
    for at, tensor in tensors_by_name(module).items():
        if bool(tensor.isnan().any()):
            return RequestError(
                f"{name} gives NaN on the example: its tensor {at!r} holds NaN", "repair it, or load the weights again"
            )
    return RequestError(f"{name} gives NaN on the example", "give inputs on which every output is a number")


def not_repeatable(module: nn.Module, ran: nn.Module) -> RequestError:
    """What to raise where a second call gives other outputs.

    Args:
        module: as it was given.
        ran: its copy, after the calls.
    """
    name = type(module).__name__
    before, after = tensors_by_name(module), tensors_by_name(ran)
    for at in before.keys() & after.keys():
        old, new = before[at], after[at]
        if old.shape != new.shape or not torch.equal(old.to(new.device), new):
            return RequestError(
                f"the forward of {name} changes {at!r}, on which its outputs depend: a second call gives other ones",
                "leave it alone in evaluation mode, where equal inputs must give equal outputs",
            )
    return RequestError(
        f"{name} returns different outputs for the same inputs",
        "switch off randomness in forward, and what it counts from call to call; in evaluation mode equal inputs must "
        "give equal outputs",
    )
