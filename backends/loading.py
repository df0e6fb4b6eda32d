"""Loading what fxprune wrote, whatever the format."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from ..ir.errors import RequestError
from ..runtime.model_files import check_model_files
from .artifact import MODULE_KIND, PROGRAM, read_record
from .pt2.save import load_into, load_program


def load(
    path: str | Path, *, into: nn.Module | None = None, allow_pickle: bool = False, trust_remote_code: bool = False
) -> nn.Module:
    """Load the module from an artifact.

    Args:
        path: a directory that fxprune wrote: a Hugging Face model, which is loaded with transformers, or a pruned
            module.
        into: a new module of the original class with the original widths. It gets the tensors and the changed
            attributes of the artifact, so that the result has this class. When None, the exported program is loaded.
        allow_pickle: whether ``torch.export.load`` may read the exported program, which can run any code in it. Without
            it, only what is data is read; what fxprune writes is.
        trust_remote_code: whether the code of a model that brings its own may run: the files that ``fxprune.json``
            lists, if they are what they were when they were copied there. A modelling file of fxprune never runs.

    Raises:
        RequestError: ``path`` is not an artifact, a damaged one, has links that lead out of it, or needs code that may
            not run or is not listed; or ``into`` does not fit it.
    """
    if not isinstance(path, str | os.PathLike):
        raise RequestError(f"path is of type {type(path).__name__}", "give a directory that fxprune wrote")
    if into is not None and not isinstance(into, nn.Module):
        given = f"the class {into.__name__}" if isinstance(into, type) else f"of type {type(into).__name__}"
        raise RequestError(f"into is {given}", "give a new module of the original class, such as into=Net()")
    folder = Path(path)
    if not os.path.isdir(folder):  # unlike Path.is_dir it has no error for a name that is too long
        raise RequestError(f"{folder} does not exist", "give a directory that fxprune wrote")
    check_model_files(folder)
    if (folder / "config.json").is_file() and not (folder / PROGRAM).is_file():
        if into is not None:
            raise RequestError(f"into= has no effect: {folder} is a Hugging Face model", "leave into= out")
        from .huggingface.load import load as load_huggingface  # imports transformers, which modules do not need

        found: nn.Module = load_huggingface(folder, own_code=trust_remote_code)
        return found
    record = read_record(folder)
    if record.get("artifact") != MODULE_KIND:
        raise RequestError(f"{folder} is not the artifact of a pruned module", "give a directory that fxprune wrote")
    return load_program(folder, allow_pickle=allow_pickle) if into is None else load_into(folder, record, into)
