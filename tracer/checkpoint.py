"""Finds the weight files of a model directory, and checks that they can be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from ..ir.errors import RequestError
from ..runtime.json_object import check_schema, read_json_object

SINGLE = "model.safetensors"
SHARDS = "model-*-of-*.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

OTHER_FORMATS = {
    ".onnx": "an ONNX model",
    ".gguf": "a model for llama.cpp",
    ".pt2": "an exported program",
    ".h5": "weights for TensorFlow",
    ".msgpack": "weights for Flax",
    ".pt": "a checkpoint of torch",
    ".pth": "a checkpoint of torch",
    ".ckpt": "a checkpoint of torch",
}
"""Endings of files that hold a model, but none that is read -> what they are."""

SUFFIXES = (".safetensors", ".bin")
LONGEST = 255
"""Bytes in the name of a file, on every common file system."""

DOWNLOAD_AGAIN = "copy or download the model again"


class IndexFile(TypedDict):
    """What is read of an index: the file of every tensor."""

    weight_map: dict[str, str]


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
        check_safetensors(directory / SINGLE)
        return (directory / SINGLE,)
    if not (directory / INDEX_FILE).is_file():
        return _pickle(directory, allow_pickle)
    listed = read_index(directory / INDEX_FILE)
    files = tuple(directory / name for name in sorted(set(listed.values())))
    _check_index(directory / INDEX_FILE, listed, {file.name: check_safetensors(file) for file in files})
    return files


def check_safetensors(file: Path) -> frozenset[str]:
    """Compare the header of a safetensors file with its size.

    Returns:
        The names of its tensors.

    Raises:
        RequestError: the file is missing, truncated or corrupt.
    """
    if not file.is_file():
        raise RequestError(f"{file} is missing, but {INDEX_FILE} lists it", DOWNLOAD_AGAIN)
    try:
        file.open("rb").close()  # safetensors calls every failure to open a file a missing one
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}", "check its permissions") from None
    try:
        with safe_open(file, framework="numpy") as opened:
            return frozenset(opened.keys())
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"{file} is truncated or corrupt: {error} ({file.stat().st_size:,} bytes on disk)",
            DOWNLOAD_AGAIN,
        ) from None


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index.

    Raises:
        RequestError: it is no index, or names something that is no file beside it.
    """
    data = read_json_object(index, DOWNLOAD_AGAIN)
    check_schema(data, IndexFile, index, DOWNLOAD_AGAIN)
    files: dict[str, str] = data["weight_map"]
    if not files:
        raise RequestError(f"{index} is damaged: it lists no tensors", DOWNLOAD_AGAIN)
    for name in sorted(set(files.values())):
        if not name.isprintable() or "\\" in name or Path(name).name != name or Path(name).suffix not in SUFFIXES:
            raise RequestError(f"{index} lists {name!r}, which is no name of a weight file beside it", DOWNLOAD_AGAIN)
        if len(name.encode()) > LONGEST:
            raise RequestError(f"{index} lists a file with a name of {len(name)} characters", DOWNLOAD_AGAIN)
    return files


def _check_index(index: Path, files: Mapping[str, str], held: Mapping[str, frozenset[str]]) -> None:
    """Compare an index with the shards: ``held`` is file name -> names of its tensors."""
    for name, file in files.items():
        if name not in held[file]:
            raise RequestError(f"{index} lists {name!r} in {file}, but that file does not hold it", DOWNLOAD_AGAIN)
    for name, file in ((name, file) for file, names in held.items() for name in names):
        if files.get(name, file) != file:
            raise RequestError(f"{index} lists {name!r} in {files[name]}, but {file} holds it too", DOWNLOAD_AGAIN)
    for path in sorted(index.parent.glob(SHARDS)):
        if path.name not in held:
            raise RequestError(
                f"{path.name} is not listed in {INDEX_FILE} of {index.parent}",
                "remove the file, or add it to the index",
            )


def _without_weights(directory: Path) -> RequestError:
    """Say that there are none, and what is there instead."""
    found = (path for ending in OTHER_FORMATS for depth in ("", "*/") for path in directory.glob(f"{depth}*{ending}"))
    other = next(found, None)
    if other is None:
        return RequestError(f"{directory} holds no weights", f"add {SINGLE}, or shards with {INDEX_FILE}")
    held = f"{OTHER_FORMATS[other.suffix]}: {other.relative_to(directory)}"
    return RequestError(
        f"{directory} holds no weights in safetensors, but {held}",
        "give the model that it was made from, such as the directory that `fxprune apply` wrote",
    )


def _pickle(directory: Path, allow_pickle: bool) -> tuple[Path, ...]:
    found = next((directory / name for name in PICKLES if (directory / name).is_file()), None)
    if found is None:
        raise _without_weights(directory)
    if not allow_pickle:
        raise RequestError(
            f"{found} is a pickle, which can run any code when it is loaded",
            "convert it to safetensors, or pass --allow-pickle to apply, eval or bench if you trust its source",
        )
    return (found,)
