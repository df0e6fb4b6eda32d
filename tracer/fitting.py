"""Whether a checkpoint and its configuration can belong together, before anything of their size is made."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..ir.errors import RequestError, first_line
from ..runtime.model_directory.generation import check_generation
from ..runtime.size_limits import SizeLimit
from ..runtime.stored_dtypes import check_dtypes
from ..runtime.streaming.mapped_files import STORED_DTYPES, Checkpoint
from .checkpoint import DOWNLOAD_AGAIN, read_index, weight_files
from .model import ModelSource, build_meta, load_config

_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()} | {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def check_fit(source: ModelSource) -> None:
    """Build the model without memory for weights, and compare it with the headers of the files.

    Args:
        source: with weights.

    Raises:
        RequestError: the configuration describes far more than the files hold; a tensor has a dtype that cannot be
            kept; or the model is quantised. As :func:`~.model.load_config`, :func:`~.model.build_meta` and
            :func:`~fxprune.runtime.model_directory.generation.check_generation`.
    """
    check_generation(source.directory)
    stored = _stored(source)
    limit = SizeLimit.of_tensors([shape for _, shape in stored.values()])
    config = load_config(source)
    model = build_meta(config, consent=source.consent, limit=limit)
    check_dtypes({name: dtype for name, (dtype, _) in stored.items()}, model, source.name)
    if weight_files(source.directory, allow_pickle=source.consent.pickle)[0].suffix != ".safetensors":
        _check_pickled(source, stored, getattr(config, "dtype", None) or torch.float32)


def _check_pickled(source: ModelSource, stored: Mapping[str, tuple[str, Any]], dtype: torch.dtype) -> None:
    """Weights in a pickle are read in one precision, that of the configuration; it must hold all of their digits."""
    for name, (kind, _) in sorted(stored.items()):
        if kind in STORED_DTYPES and torch.promote_types(dtype, STORED_DTYPES[kind]) != dtype:
            raise RequestError(
                f"{source.name!r} holds {name!r} in {kind} in a pickle, which is read in {dtype} of config.json",
                "convert it to safetensors, where every tensor keeps its dtype; or correct the dtype in config.json",
            )


def _stored(source: ModelSource) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of every tensor in the files of a model."""
    files = weight_files(source.directory, allow_pickle=source.consent.pickle)
    if files[0].suffix == ".safetensors":
        return {name: (tensor.dtype, tensor.shape) for name, tensor in Checkpoint(files).tensors.items()}
    if files[0].suffix == ".json":
        files = tuple(source.directory / name for name in sorted(set(read_index(files[0]).values())))
    return {name: entry for file in files for name, entry in _pickled(file).items()}


def _pickled(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        data: Any = torch.load(file, map_location="meta", weights_only=True, mmap=_is_archive(file))
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise RequestError(f"{file} is damaged: {first_line(error)}", DOWNLOAD_AGAIN) from error
    if not isinstance(data, dict):
        raise RequestError(f"{file} holds no tensors by name", DOWNLOAD_AGAIN)
    tensors = {str(name): value for name, value in data.items() if isinstance(value, torch.Tensor)}
    return {
        name: (_NAMES.get(t.dtype, str(t.dtype).removeprefix("torch.")), tuple(t.shape)) for name, t in tensors.items()
    }


def _is_archive(file: Path) -> bool:
    """Whether it has the format that can be mapped into memory: a zip."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"
