"""Loading what fxprune wrote, whatever the format."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from ..ir.errors import RequestError
from .artifact import read_record
from .pt2.save import KIND, PROGRAM, load_into, load_program


def load(path: str | Path, *, into: nn.Module | None = None, allow_pickle: bool = False) -> nn.Module:
    """Load the module from an artifact.

    Args:
        path: a directory that fxprune wrote: a Hugging Face model, which is loaded with transformers, or a pruned
            module.
        into: a new module of the original class with the original widths. It gets the tensors and the changed
            attributes of the artifact, so that the result has this class. When None, the exported program is loaded.
        allow_pickle: whether ``torch.export.load`` may read the exported program, which can run any code in it. Without
            it, only what is data is read; what fxprune writes is.

    Raises:
        RequestError: ``path`` is not an artifact, or a damaged one; or ``into`` does not fit it.
    """
    if not isinstance(path, str | os.PathLike):
        raise RequestError(f"path is of type {type(path).__name__}", "give a directory that fxprune wrote")
    folder = Path(path)
    if not os.path.isdir(folder):  # unlike Path.is_dir it has no error for a name that is too long
        raise RequestError(f"{folder} does not exist", "give a directory that fxprune wrote")
    if (folder / "config.json").is_file() and not (folder / PROGRAM).is_file():
        if into is not None:
            raise RequestError(f"into= has no effect: {folder} is a Hugging Face model", "leave into= out")
        from .huggingface.save import load as load_huggingface  # imports transformers, which modules do not need

        found: nn.Module = load_huggingface(folder)
        return found
    record = read_record(folder)
    if record.get("artifact") != KIND:
        raise RequestError(f"{folder} is not the artifact of a pruned module", "give a directory that fxprune wrote")
    return load_program(folder, allow_pickle=allow_pickle) if into is None else load_into(folder, record, into)
