"""Sha256 of files: the weight files that a plan was made for, and the files of an artifact."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import threading
from collections.abc import Mapping
from pathlib import Path

from ..runtime.adapter_files import ADAPTER_CONFIG, ADAPTER_PICKLE

INDEX_SUFFIX = ".safetensors.index.json"
SOURCE_SUFFIXES = (".safetensors", INDEX_SUFFIX, ADAPTER_CONFIG, ADAPTER_PICKLE)

READ_WINDOW = 1 << 27
"""Bytes that are hashed in one call, and in memory during it. Between calls a thread waits for Python's global lock,
which costs milliseconds while another thread imports or traces."""


def sha256(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, size, READ_WINDOW):
            length = min(READ_WINDOW, size - start)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as window:
                digest.update(window)
    return digest.hexdigest()


def digests(folder: Path, *suffixes: str, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """File name -> sha256 for the files in a directory.

    Args:
        folder: the directory.
        suffixes: only files with one of these suffixes; all files when none is given.
        known: digests that were computed while the files were written.
    """
    chosen = [path for path in _files(folder) if not suffixes or path.name.endswith(suffixes)]
    return {path.name: (known or {}).get(path.name) or sha256(path) for path in chosen}


def source_digests(source: Path) -> dict[str, str]:
    """Name -> sha256 of the weight files of a model directory and of their index, which identify the model of a plan.

    Uses the result of :func:`begin_source_digests`, if the files have not changed since.
    """
    begun = _begun.pop(source.resolve(), None)
    if begun is not None and (found := begun.result()) is not None:
        return found
    return digests(source, *SOURCE_SUFFIXES) if source.is_dir() else {}


def begin_source_digests(source: Path) -> None:
    """Begin to compute :func:`source_digests` in a thread. The program can end while the thread runs.

    Nothing has checked the path yet: where no directory can be, nothing begins.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, links in a circle, a NUL in it
        source = source.resolve()
        if source.is_dir() and source not in _begun:
            _begun[source] = _Begun(source)


class _Begun:
    """Digests that a thread is computing."""

    def __init__(self, source: Path) -> None:
        self._source, self._stamps = source, _stamps(source)
        self._found: dict[str, str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = digests(self._source, *SOURCE_SUFFIXES)
        except (OSError, ValueError):  # ``source_digests`` computes them again, and raises the error
            self._found = None

    def result(self) -> dict[str, str] | None:
        """The digests; None when a file has changed since, or could not be read."""
        self._thread.join()
        return self._found if _stamps(self._source) == self._stamps else None


_begun: dict[Path, _Begun] = {}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of the weight files and their index."""
    chosen = [(path.name, path.stat()) for path in _files(folder) if path.name.endswith(SOURCE_SUFFIXES)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in chosen]
