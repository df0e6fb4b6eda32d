"""Models whose weights stay in files, or in the host's memory as they are in the files, while they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..backends.huggingface.streamed_weights import obstacle, stored_tensors
from ..runtime.place.placement import MEMORY, Placement
from ..runtime.streaming.mapped_files import Checkpoint
from ..runtime.streaming.residence import Residence
from ..runtime.streaming.store import InMemory, OnDisk, Scratch, Store, write_tensor
from ..runtime.tensors import Places
from ..tracer.model import ModelSource, load_model
from .progress import Progress


@dataclass(frozen=True)
class Files:
    """Files whose tensors are those of a module.

    Attributes:
        checkpoint: the files.
        converted: whether they are not the source's, but were made from it.
    """

    checkpoint: Checkpoint
    converted: bool = False


def find_files(
    source: ModelSource,
    module: Any,
    checkpoint: Checkpoint | None,
    dtype: torch.dtype,
    *,
    scratch: Scratch | None,
    progress: Progress,
) -> Files | str:
    """The files of a model; made once where transformers renames or merges tensors when it loads them.

    Args:
        source: the model.
        module: the same without values; where files are made, it gets the values of buffers that are no floating-point
            numbers.
        checkpoint: its safetensors files; None when its weights are a pickle.
        dtype: of the files.
        scratch: gives a directory for new files; None when none may be made.
        progress: told when they are made.

    Returns:
        The files; or why there are none, and all weights have to be loaded.

    Raises:
        FxpruneError: the checkpoint does not fit the model, or the disk is full.
    """
    why = "its files are not safetensors" if checkpoint is None else obstacle(checkpoint, module)
    if checkpoint is not None and not why:
        return Files(checkpoint)
    if scratch is None or not all(weight.is_floating_point() for weight in module.parameters()):
        return why
    progress(f"converting the weights of {source.name} once, which loads all of them: {why}")
    return Files(_converted(source, module, dtype, scratch), converted=True)


def residence_of(module: Any, checkpoint: Checkpoint, placement: Placement, scratch: Scratch) -> Residence:
    """What brings the weights of a module from its files into memory.

    Args:
        module: its parameters are on the meta device, its buffers have values.
        checkpoint: its files.
        placement: where it runs.
        scratch: gives a directory for weights that passes write.
    """
    resident = placement.offload == MEMORY
    shelf = InMemory() if resident else OnDisk(scratch)
    store = Store(stored_tensors(checkpoint, module), shelf, resident=resident)
    return Residence(module, store, placement.device, placement.dtype, placement.max_memory)


def _converted(source: ModelSource, module: Any, dtype: torch.dtype, scratch: Scratch) -> Checkpoint:
    """Load a model as transformers does, in the dtype of its files, and write its tensors, one to a file."""
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
    return Checkpoint(files, keep_open=False)
