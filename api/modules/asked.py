"""What a module was pruned with, so that somebody else can do it again: for ``fxprune.json`` and recipes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...backends.digests import sha256
from ...backends.recipe import SHA256
from ...tracer.module import ForwardCall
from ..request_checks import is_path

ALL_TENSORS = "tensors"
"""What stands for a file of weights in the digests of a module, which has none."""


def told_of(
    module: nn.Module, call: ForwardCall, loss: Callable[..., Any] | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Two fields of a result: :func:`asked_for`, and :func:`source_of` the module that is given."""
    return {"asked": asked_for(call, loss, given), "source": source_of(module, type(module).__name__)}


def asked_for(call: ForwardCall, loss: Callable[..., Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The request, as far as text can say it.

    Args:
        call: the example inputs.
        loss: None for none.
        given: what was given as ``calib`` and ``data``: a file, the name of a function, batches, or None.

    Returns:
        ``example`` and ``loss`` as the command line takes them; ``calib`` and ``data`` with the last part of a path
        and its sha256, or the name of a function. What only a program can give (batches, a function without a name of
        its own, arguments that are no tensors) is left out.
    """
    found: dict[str, Any] = {}
    if (example := _example(call)) is not None:
        found["example"] = example
    if (name := _name(loss)) is not None:
        found["loss"] = name
    for key, value in given.items():
        if is_path(value):
            path = Path(os.fspath(value)).expanduser()
            found[key] = {"name": path.name, SHA256: sha256(path)} if path.is_file() else {"name": str(value)}
        elif (name := _name(value)) is not None:
            found[key] = {"name": name}
    return found


def source_of(module: nn.Module, name: str) -> dict[str, Any]:
    """The name of a module and the sha256 of all its tensors."""
    return {"name": name, SHA256: {ALL_TENSORS: digest_of(module)}}


def digest_of(module: nn.Module) -> str:
    """The sha256 of all tensors of a module, with their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized:
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _example(call: ForwardCall) -> str | None:
    values = dict(call.kwargs) if call.kwargs else {str(at): value for at, value in enumerate(call.args)}
    if (call.kwargs and call.args) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        return None
    texts = []
    for name, value in values.items():
        dtype, shape = str(value.dtype).removeprefix("torch."), ",".join(map(str, value.shape))
        texts.append((f"{name}=" if call.kwargs else "") + f"{dtype}[{shape}]")
    return ",".join(texts)


def _name(function: object) -> str | None:
    """``package.module:function`` of a function that can be found under it."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if not callable(function) or not module or module == "__main__" or "<" in name:
        return None
    return f"{module}:{name}"
