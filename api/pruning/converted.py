"""Weights that transformers renames or merges when it loads them, written once by the names of the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...runtime.streaming.mapped_files import Checkpoint
from ...runtime.streaming.store import Scratch, write_tensor
from ...runtime.tensors import Places
from ...tracer.model import ModelSource, load_model


def converted(source: ModelSource, module: Any, dtype: torch.dtype, scratch: Scratch) -> Checkpoint:
    """Load a model as transformers does, in the dtype of its files, and write its tensors, one to a file.

    Args:
        source: the model.
        module: the same without values; it learns how transformers converts the names, and gets the values of buffers
            that are no floating-point numbers.
        dtype: of the files.
        scratch: gives the directory to write into.

    Returns:
        The files.

    Raises:
        FxpruneError: the checkpoint does not fit the model, or the disk is full.
    """
    model = load_model(source, dtype=dtype)
    if (conversions := getattr(model, "_weight_conversions", None)) is not None:
        module._weight_conversions = conversions  # by which transformers writes the names of the source
    places = Places(module)
    files: list[Path] = []
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if not tensor.is_floating_point():
            places.replace(name, tensor.detach())
            continue
        files.append(write_tensor(scratch() / f"source-{len(files):06}.safetensors", name, tensor))
        tensor.data = torch.empty(0, dtype=dtype)
    return Checkpoint(files)
