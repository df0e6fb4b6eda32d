"""Write large files without the file cache of the system, if possible. This takes less processor time, and leaves the
files in the cache that are still being read."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt

try:
    import fcntl
except ImportError:  # only POSIX has it
    fcntl = None  # type: ignore[assignment]

WRITE_BLOCK = 1 << 22
"""Bytes that are hashed and written at once; a multiple of the block size that any file system needs for direct I/O."""

WRITE_BLOCKS = 3
"""One block is filled, one is hashed, one is written."""

DIRECT_SIZE = 1 << 26
"""Files of at least this many bytes are written with direct I/O."""

Bytes = npt.NDArray[np.uint8]


class DirectFile:
    """A file of known size that is written from start to end; two threads hash and write the data.

    Args:
        path: the file; it is created, or emptied.
        size: the size of the file; it is allocated at once, so that a full disk is noticed at once.

    Raises:
        OSError: the file cannot be written; from any method.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._file = _File(path, size)
        self._digest = hashlib.sha256()
        memory = mmap.mmap(-1, WRITE_BLOCK * WRITE_BLOCKS)  # aligned, as direct I/O needs it
        self._blocks: list[Bytes] = list(np.frombuffer(memory, np.uint8).reshape(WRITE_BLOCKS, WRITE_BLOCK))
        self._busy: list[list[Future[None]]] = [[] for _ in range(WRITE_BLOCKS)]
        self._filled = 0
        self._hasher, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._pass_on()
                self._settle(list(range(WRITE_BLOCKS)))
        finally:
            self._hasher.shutdown(cancel_futures=True)
            self._writer.shutdown(cancel_futures=True)
            self._file.close()

    def write(self, data: Bytes) -> None:
        """Append bytes."""
        while len(data):
            if not self._filled:
                self._settle([0])
            count = min(len(data), WRITE_BLOCK - self._filled)
            self._blocks[0][self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == WRITE_BLOCK:
                self._pass_on()

    def sha256(self) -> str:
        """The sha256 of the file, once it is closed, as hexadecimal digits."""
        return self._digest.hexdigest()

    def _pass_on(self) -> None:
        block = self._blocks[0][: self._filled]
        self._busy[0] = [
            self._hasher.submit(self._digest.update, block.data),
            self._writer.submit(self._file.write, block.data),
        ]
        self._blocks.append(self._blocks.pop(0))
        self._busy.append(self._busy.pop(0))
        self._filled = 0

    def _settle(self, blocks: list[int]) -> None:
        """Wait until these blocks are hashed and written."""
        for number in blocks:
            wait(self._busy[number])
            for done in self._busy[number]:
                done.result()


class _File:
    """A file descriptor that uses direct I/O for whole blocks."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, size)  # to allocate all space at once takes half of the time
            self._direct = size >= DIRECT_SIZE and self._set_direct(True)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview) -> None:
        if self._direct and len(data) < WRITE_BLOCK:  # the end of the file
            self._direct = self._set_direct(False)
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = self._set_direct(False)  # this file system has other rules for direct I/O

    def close(self) -> None:
        os.close(self._file)

    def _set_direct(self, direct: bool) -> bool:
        """Switch direct I/O on or off; returns whether it is on."""
        if fcntl is None or not hasattr(os, "O_DIRECT"):
            return False
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
        except OSError:
            return False
        return direct
