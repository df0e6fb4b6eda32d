"""Finds the weight files of a model directory, and checks that they can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..ir.errors import RequestError

SINGLE = "model.safetensors"
SHARDS = "model-*-of-*.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(directory: Path, *, allow_pickle: bool = False) -> tuple[Path, ...]:
    """The files that hold the weights of the model in ``directory``, checked; tensor data is not read.

    Args:
        directory: a Hugging Face model directory.
        allow_pickle: whether a ``pytorch_model.bin`` is accepted when there is no safetensors file.

    Raises:
        RequestError: there are no weights, a shard is missing, a file is truncated or corrupt, or the only weights are
            a pickle and that is not allowed.
    """
    if (directory / SINGLE).is_file():
        files = [directory / SINGLE]
    elif (directory / INDEX_FILE).is_file():
        files = _shards(directory / INDEX_FILE)
    else:
        return _pickle(directory, allow_pickle)
    held = {file.name: check_safetensors(file) for file in files}
    if files[0].name != SINGLE:
        _check_index(directory, held)
    return tuple(files)


def check_safetensors(file: Path) -> frozenset[str]:
    """Compare the header of a safetensors file with its size.

    Returns:
        The names of its tensors.

    Raises:
        RequestError: the file is missing, truncated or corrupt.
    """
    if not file.is_file():
        raise RequestError(f"{file} is missing, but {INDEX_FILE} lists it", "copy or download the model again")
    try:
        with safe_open(file, framework="numpy") as opened:
            return frozenset(opened.keys())
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"{file} is truncated or corrupt: {error} ({file.stat().st_size:,} bytes on disk)",
            "copy or download the model again",
        ) from None


def _check_index(directory: Path, held: Mapping[str, frozenset[str]]) -> None:
    """Compare an index with the shards: ``held`` is file name -> names of its tensors."""
    index = directory / INDEX_FILE
    for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        if name not in held[file]:
            raise RequestError(
                f"{index} lists {name!r} in {file}, but that file does not hold it", "copy or download the model again"
            )
    for path in sorted(directory.glob(SHARDS)):
        if path.name not in held:
            raise RequestError(
                f"{path.name} is not listed in {INDEX_FILE} of {directory}", "remove the file, or add it to the index"
            )


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise RequestError(
            f"{index} is not an index of safetensors files", "copy or download the model again"
        ) from None
    return [index.parent / name for name in sorted(names)]


def _pickle(directory: Path, allow_pickle: bool) -> tuple[Path, ...]:
    found = next((directory / name for name in PICKLES if (directory / name).is_file()), None)
    if found is None:
        raise RequestError(f"{directory} holds no weights", f"add {SINGLE}, or shards with {INDEX_FILE}")
    if not allow_pickle:
        raise RequestError(
            f"{found} is a pickle, which can run any code when it is loaded",
            "convert it to safetensors, or pass --allow-pickle if you trust its source",
        )
    return (found,)
