"""Back to the precision of the files, after passes that computed in a coarser dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...ir.plan import Plan
from ...runtime.streaming.store import Store


def loses_digits(arithmetic: torch.dtype, stored: torch.dtype) -> bool:
    """Whether numbers of the files are rounded when they are converted to the dtype of the arithmetic."""
    return torch.promote_types(arithmetic, stored) != arithmetic


def rounded_as_stored(model: Any, dtype: torch.dtype) -> None:
    """Give all tensors that are stored the numbers that files of a dtype hold; they stay in the dtype they have."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype).to(tensor.dtype)


def as_stored(model: Any, dtype: torch.dtype) -> None:
    """Convert all tensors that are stored to the dtype of the files, on the CPU.

    Buffers that are not stored, such as rotary tables, stay in float32: loading computes them in float32.
    """
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    model.to("cpu")


def take_unchanged(model: Any, files: Store, arithmetic: torch.dtype, plan: Plan, renamed: Mapping[str, str]) -> None:
    """Replace what no pass changed by what the files hold: only the units that stay, with all their digits.

    Args:
        model: after :func:`as_stored`.
        files: the source; it is cut by the plan.
        arithmetic: the dtype that the model computed in.
        plan: what was removed, with the names of the source.
        renamed: present name -> name in the source, where they differ.
    """
    now = {renamed.get(name, name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    files.cut(plan)
    for name, tensor in now.items():
        if name not in files:
            continue
        value = files.read(name)
        rounded = value.to(arithmetic).to(tensor.dtype)
        if value.dtype == tensor.dtype and rounded.shape == tensor.shape and torch.equal(rounded, tensor.data):
            tensor.data = value.clone()
