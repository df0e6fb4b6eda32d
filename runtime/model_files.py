"""Which files belong to a model directory, by their names, and that they are files in it and no links elsewhere."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..ir.errors import RequestError
from .model_directory.tokenizer import SUBFOLDERS

MODEL_FILES = (
    "config.json", "generation_config.json", "*processor_config.json", "tokenizer*.json", "tokenizer*.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template*.json", "vocab*.json", "vocab*.txt", "merges.txt",
    "*.jinja", "*.tiktoken", "spiece.model", "sentencepiece*.model", "genai_config.json", "quantize_config.json",
    "adapter_config.json", "adapter_model.safetensors", "params.json", "fxprune.json", "fxprune.plan",
    "plan.safetensors",
    "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.safetensors", "consolidated*.safetensors",
    "pytorch_model*.bin", "pytorch_model*.bin.index.json", "tf_model*.h5", "flax_model*.msgpack",
    "model*.onnx", "model*.onnx.data", "model*.onnx_data*", "model.pt2", "model*.gguf",
    "modeling_*.py", "configuration_*.py", "tokenization_*.py", "processing_*.py", "image_processing_*.py",
    "README.md", "LICENSE*", "USE_POLICY.md", "NOTICE*", ".gitattributes", ".DS_Store",
)  # fmt: skip
"""What programs write into a model directory. Nothing that a user would write by hand under a name of their own."""

READ_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".tiktoken", ".py", ".data", ".onnx")
"""Of the files that fxprune or transformers reads from a model directory, or copies."""

READ_BEGINNINGS = ("tokenizer", "vocab", "chat_template", "merges", "LICENSE")

READ_FOLDERS = ("additional_chat_templates", "onnx", *SUBFOLDERS)


def is_model_file(name: str) -> bool:
    """Whether a file of this name belongs to a model."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def is_read(name: str) -> bool:
    """Whether something of this name is read from a model directory, or copied from it."""
    told = name.endswith(READ_SUFFIXES) or name.startswith(READ_BEGINNINGS)
    return told or name in READ_FOLDERS or is_model_file(name)


def link_root(folder: Path) -> Path:
    """The directory that links in a model directory may not leave: the model directory itself, or in the cache of the
    Hub the folder of that model, where ``snapshots/<revision>/<file>`` is a link to ``blobs/<hash>``."""
    folder = folder.resolve()
    owner = folder.parent.parent
    cached = folder.parent.name == "snapshots" and owner.name.startswith("models--") and (owner / "blobs").is_dir()
    return owner if cached else folder


def check_model_files(folder: Path) -> None:
    """Refuse a model directory in which something that may be read or copied is no regular file inside it.

    A tokenizer may read files of any name (``bpe.codes``, ``source.spm``), so links and pipes of any name are refused;
    and those in the folders that are read.

    Raises:
        RequestError: it is a link that leads out of the directory, or to nowhere though it has the name of a file that
            is read; a pipe, a device or a socket; or a directory where a file belongs. The message names it.
    """
    root = link_root(folder)
    for path in _entries(folder):
        if is_read(path.name) or path.parent != folder or _leads_out(path, root):
            _check(path, root)


def _entries(folder: Path) -> Iterator[Path]:
    """What is directly in a model directory, and all that is in the folders in it that are read, by name."""
    for name in sorted(os.listdir(folder)):
        yield folder / name
        if name in READ_FOLDERS:
            for inside, folders, files in os.walk(folder / name):
                yield from (Path(inside) / one for one in sorted(folders + files))


def _leads_out(path: Path, root: Path) -> bool:
    """Whether it is a link to something outside of a directory, or no file or directory at all."""
    try:
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # leads nowhere, so there is nothing to read
        return False


def _check(path: Path, root: Path) -> None:
    try:
        mode, target = path.stat().st_mode, path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: before Python 3.13, for links in a circle
        raise RequestError(
            f"{path} is a link that leads nowhere: {error}", "copy the file there, or remove the link"
        ) from None
    if not target.is_relative_to(root):
        raise RequestError(
            f"{path} is a link to {target}, outside of the model directory",
            "a downloaded model could have any file of yours copied so; if the link is yours, replace it by the file, "
            "or by a hard link",
        )
    if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and not (is_read(path.name) and _named_as_file(path.name))):
        return
    what = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise RequestError(f"{path} is {what}, where a file belongs", "remove it, or download the model again")


def _named_as_file(name: str) -> bool:
    return name not in READ_FOLDERS and "." in name


def copy_model_file(path: Path, into: Path) -> None:
    """Copy a file of a model directory, and only its bytes: not its mode, its owner or its times.

    Raises:
        RequestError: it has become something else since :func:`check_model_files`.
        OSError: it cannot be read, or the copy cannot be written.
    """
    _check(path, link_root(path.parent))
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path.resolve(), flags), "rb") as read, (into / path.name).open("wb") as written:
        if not stat.S_ISREG(os.fstat(read.fileno()).st_mode):
            raise RequestError(f"{path} is no regular file any more", "run again when nothing changes the model")
        while block := read.read(1 << 20):
            written.write(block)


def files_read(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Name and state of every file in a model directory that is read or copied, by name."""
    for name in sorted(os.listdir(folder)):
        with contextlib.suppress(OSError):
            about = (folder / name).stat()
            if is_read(name) and stat.S_ISREG(about.st_mode):
                yield name, about
