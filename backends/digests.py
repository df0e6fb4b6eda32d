"""Sha256 of files: what a plan was made for, and what an artifact consists of."""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Mapping
from pathlib import Path

INDEX_SUFFIX = ".safetensors.index.json"
SOURCE_SUFFIXES = (".safetensors", INDEX_SUFFIX)

WINDOW = 1 << 27
"""Bytes that are hashed in one call, and resident meanwhile: between calls a thread waits for Python's lock, which
costs milliseconds while another one imports or traces."""


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, size, WINDOW):
            length = min(WINDOW, size - start)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as window:
                digest.update(window)
    return digest.hexdigest()


def digests(folder: Path, *suffixes: str, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """File name -> sha256 of the files in a directory, of those with one of ``suffixes`` when any is given.

    Args:
        folder: the directory.
        suffixes: of the files that count.
        known: digests that were computed while the files were written.
    """
    chosen = [path for path in _files(folder) if not suffixes or path.name.endswith(suffixes)]
    return {path.name: (known or {}).get(path.name) or sha256(path) for path in chosen}


def source_digests(source: Path) -> dict[str, str]:
    """Name -> sha256 of the weight files of a model directory and of their index: what a plan was made for.

    Takes what :func:`begin_source_digests` began, if the files are still those.
    """
    begun = _begun.pop(source.resolve(), None)
    if begun is not None and (found := begun.result()) is not None:
        return found
    return digests(source, *SOURCE_SUFFIXES) if source.is_dir() else {}


def begin_source_digests(source: Path) -> None:
    """Begin to compute, in a thread, what :func:`source_digests` will be asked for; it does not keep the program from
    ending."""
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
        except (OSError, ValueError):  # whoever asks computes them anew, and meets the error
            self._found = None

    def result(self) -> dict[str, str] | None:
        """None when a file was changed since, or could not be read."""
        self._thread.join()
        return self._found if _stamps(self._source) == self._stamps else None


_begun: dict[Path, _Begun] = {}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that count."""
    chosen = [(path.name, path.stat()) for path in _files(folder) if path.name.endswith(SOURCE_SUFFIXES)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in chosen]
