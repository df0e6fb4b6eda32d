"""The files of a stage: a record in JSON, and its tensors in safetensors. Nothing in them can be executed.

The record holds the sha256 of itself and of the tensors, so that a changed or cut off file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...backends.artifact import RECORD, read_record, write_json
from ...backends.digests import sha256
from ...ir.errors import RequestError

TENSORS = "stage.safetensors"

STAGE_FORMAT = 2
"""Of the files; 1 was a pickle."""

TENSOR, ARRAY = "fxprune.tensor", "fxprune.array"
"""The only key of an object in the record that stands for a tensor, or for a NumPy array; the value is its name."""


class UnsavableError(Exception):
    """Something cannot be saved in a stage; the message says what."""


@dataclass
class Packed:
    """Nested data, split in two.

    Attributes:
        data: JSON data, with names in place of tensors.
        tensors: name -> tensor; arrays are among them. Tensors that are the same memory are there once.
    """

    data: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    _known: dict[object, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Any) -> Packed:
        """Split nested data.

        Raises:
            UnsavableError: it holds something else than JSON data, tensors and arrays.
        """
        made = cls()
        made.data = made._packed(data, "")
        return made

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def _packed(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            name = self._named(value if isinstance(value, torch.Tensor) else _tensor(value), path)
            return {TENSOR if isinstance(value, torch.Tensor) else ARRAY: name}
        if isinstance(value, Mapping):
            if TENSOR in value or ARRAY in value:
                raise UnsavableError(f"{path} holds a key that stands for tensors")
            return {key: self._packed(inner, f"{path}/{key}" if path else str(key)) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._packed(inner, f"{path}/{number}") for number, inner in enumerate(value)]
        if value is None or isinstance(value, str | int | float):
            return value
        raise UnsavableError(f"{path} is a {type(value).__name__}")

    def _named(self, tensor: torch.Tensor, path: str) -> str:
        if tensor.is_meta or path in self.tensors:
            raise UnsavableError(f"the tensor {path} has no values, or no name of its own")
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        name = self._known.setdefault(memory, path) if tensor.numel() else path
        if name == path:
            self.tensors[path] = tensor.detach()
        return name


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def write_stage(folder: Path, packed: Packed) -> None:
    """Write the files of a stage into a folder.

    Raises:
        UnsavableError: the data cannot be written.
        OSError, SafetensorError: the files cannot be written.
    """
    try:
        # Tensors that share memory are refused.
        save_file({name: tensor.cpu().contiguous() for name, tensor in packed.tensors.items()}, folder / TENSORS)
        stage = json.loads(
            json.dumps({"format": STAGE_FORMAT, "tensors": sha256(folder / TENSORS), "data": packed.data})
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsavableError(str(error)) from error
    write_json(folder / RECORD, {"sha256": _digest(stage), "stage": stage})


@dataclass(frozen=True)
class StageFile:
    """A stage that was found intact.

    Attributes:
        folder: where its files are.
        data: as it was given to :meth:`Packed.of`, with names in place of tensors.
    """

    folder: Path
    data: dict[str, Any]

    def whole(self) -> dict[str, Any]:
        """The data, with tensors and arrays; tuples are lists now.

        Raises:
            KeyError, TypeError, ValueError: for a tensor that is missing.
            SafetensorError, OSError: the tensors cannot be read.
        """
        with safe_open(self.folder / TENSORS, framework="pt") as file:
            found: dict[str, Any] = _unpacked(self.data, file)
        return found


def read_stage(folder: Path, hint: str) -> StageFile:
    """Find a stage, and check that it is intact.

    Args:
        folder: where its files are.
        hint: what to do when it cannot be used.

    Raises:
        RequestError: it is a link or holds one, it is damaged, or another version of fxprune wrote it.
    """
    if folder.is_symlink():
        raise RequestError(f"{folder} is a link, and no run made it", f"remove it, or {hint}")
    for path in (folder / RECORD, folder / TENSORS):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise RequestError(f"{path} is a link or no file, and no run made it", f"remove {folder}, or {hint}")
    try:
        record = read_record(folder)
    except (RequestError, RecursionError) as error:
        message = error.message if isinstance(error, RequestError) else f"{folder / RECORD} is damaged: nested too deep"
        raise RequestError(message, hint) from error
    stage = record.get("stage")
    if not isinstance(stage, dict) or stage.get("format") != STAGE_FORMAT:
        raise RequestError(f"{folder} was written by another version of fxprune", hint)
    if record.get("sha256") != _digest(stage):
        raise RequestError(f"{folder / RECORD} is damaged, or was changed", hint)
    if not (folder / TENSORS).is_file() or sha256(folder / TENSORS) != stage.get("tensors"):
        raise RequestError(f"{folder / TENSORS} is damaged, or was changed", hint)
    if not isinstance(stage.get("data"), dict):
        raise RequestError(f"{folder / RECORD} is damaged: it holds no stage", hint)
    return StageFile(folder, stage["data"])


def _unpacked(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        for key in (TENSOR, ARRAY):
            if key in value:
                try:
                    tensor = file.get_tensor(value[key])
                except SafetensorError as error:
                    raise ValueError(str(error)) from error
                return tensor if key == TENSOR else tensor.numpy()
        return {key: _unpacked(inner, file) for key, inner in value.items()}
    return [_unpacked(inner, file) for inner in value] if isinstance(value, list) else value


def _digest(stage: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stage, sort_keys=True).encode()).hexdigest()
