"""Values of attention heads that are narrower than queries and keys, where a model's code reads one size for all.

The map that makes the values returns zeros in the place of the channels that went, and the map that reads what
attention made of them is not given these. So the model's own code sees whole heads, and computes what it computed with
zeros there. The modelling file of an artifact holds the same functions; they name no architecture.
"""

from __future__ import annotations

from typing import Any

import torch

MAKES, READS = "makes", "reads"
"""What a linear map does with the values of heads."""

VALUE_WIDTH = "value_width"
"""The attribute of such a map that says how many channels of a head there are."""


def with_zeros(module: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
    """A forward hook of a map that makes values ``[..., heads * kept]``: ``[..., heads * width]``."""
    del given
    missing = module.held_values[1] - module.value_width
    if not missing:
        return made
    return torch.nn.functional.pad(made.unflatten(-1, (-1, module.value_width)), (0, missing)).flatten(-2)


def without_zeros(module: Any, given: Any) -> Any:
    """A forward pre-hook of a map that reads ``[..., heads * kept]`` of the values ``[..., heads * width]``."""
    width = module.held_values[1]
    if module.value_width == width:
        return None
    return given[0].unflatten(-1, (-1, width))[..., : module.value_width].flatten(-2), *given[1:]


def hold_values(model: Any, values: dict[str, Any]) -> None:
    """Let maps of a model make or read values that may become narrower.

    Args:
        model: with a linear map at each path.
        values: path of a module -> what it does, ``makes`` or ``reads``, and the width of a head.
    """
    for path, (does, width) in values.items():
        module = model.get_submodule(path)
        module.held_values, module.value_width = (does, width), width
        if does == "makes":
            module.register_forward_hook(with_zeros)
        else:
            module.register_forward_pre_hook(without_zeros)


def held_values(model: torch.nn.Module) -> dict[str, list[Any]]:
    """Path -> what :func:`hold_values` was told of it, for all modules of a model."""
    found = ((path, vars(module).get("held_values")) for path, module in model.named_modules())
    return {path: list(held) for path, held in found if held is not None}


def narrow_values(model: torch.nn.Module) -> dict[str, list[Any]]:
    """As :func:`held_values`, where channels of values went."""
    return {path: held for path, held in held_values(model).items() if model.get_submodule(path).value_width != held[1]}


Released = dict[str, tuple[list[Any], int]]
"""Path -> what :func:`hold_values` was told, and how wide the values are now."""


def release_values(model: torch.nn.Module) -> Released:
    """Take back what :func:`hold_values` did, for :func:`hold_again`: on other modules in the same places, say, that
    call these."""
    released: Released = {}
    for path, held in held_values(model).items():
        module: Any = model.get_submodule(path)
        released[path] = held, module.value_width
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [number for number, hook in hooks.items() if hook in (with_zeros, without_zeros)]:
                del hooks[number]
        del module.held_values, module.value_width
    return released


def hold_again(model: torch.nn.Module, released: Released) -> None:
    """Do again what :func:`release_values` took back."""
    hold_values(model, {path: held for path, (held, _) in released.items()})
    for path, (_, width) in released.items():
        setattr(model.get_submodule(path), VALUE_WIDTH, width)
