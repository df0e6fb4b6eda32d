"""A directory of a data set: only regular files inside it are read, whatever its ``README.md`` names."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import RequestError

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_SETTINGS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""What ``datasets`` reads to find out which files hold the rows."""


def load_directory(folder: Path, config: str | None, split: str) -> Any:
    """The rows of a split.

    Args:
        folder: the directory.
        config: the configuration in its ``README.md``; the only one when None.
        split: the split.

    Raises:
        RequestError: something that would be read lies outside of the directory, or is no regular file.
        Exception: of any class, where ``datasets`` cannot load it.
    """
    import datasets

    for name in _SETTINGS:
        if (folder / name).is_symlink() or (folder / name).exists():
            _check(str(folder / name), folder)
    builder = datasets.load_dataset_builder(str(folder), config)
    for file in _data_files(builder):
        _check(file, folder)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _data_files(builder: DatasetBuilder) -> Iterator[str]:
    """Paths or addresses of the files that hold the rows of every split. They are known before one is opened."""
    for files in (builder.config.data_files or {}).values():
        yield from map(str, files)


def _check(file: str, folder: Path) -> None:
    try:
        end = Path(file).resolve(strict=True)
        regular = stat.S_ISREG(end.stat().st_mode)
    except (OSError, RuntimeError, ValueError):  # an address, or a link that leads nowhere
        end, regular = None, False
    if end is None or not end.is_relative_to(folder.resolve()):
        raise RequestError(
            f"the data set in {folder} reads {file}, which is not in that directory",
            "a downloaded data set could have any file of yours read so; if you want that, copy the file there",
        )
    if not regular:
        raise RequestError(f"{file} is a pipe, a socket, a device or a directory", "remove it, or give the text itself")
