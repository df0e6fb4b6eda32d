"""Directories for the files of a run. They go at its end; those of a run that was killed go with the next run."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # only POSIX has it; on other systems the files of killed runs are not removed
    fcntl = None  # type: ignore[assignment]

RESERVE = 6
"""File descriptors that are kept to remove a directory with, where a run has used up all others."""

_RANDOM = "[0-9a-f]{16}"

_RUN = ".run"


def lock(path: Path) -> int | None:
    """Lock a file or directory until :func:`unlock`, or until this process ends, for whatever reason.

    Returns:
        A file descriptor; None where this system, or this file system, has no such locks.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be opened: it is gone, or too many files are open.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, os.strerror(error.errno), str(path)) from error
        return None
    return descriptor


def unlock(held: int | None) -> None:
    """Give up a lock."""
    if held is not None:
        os.close(held)


class ScratchDirectory:
    """A new, empty directory that only its owner can read. It is locked while it is used, so that another run can tell
    it from what a killed run has left behind. What killed runs have left under the same name is removed first.

    Attributes:
        path: where it is.

    Args:
        name: what it is for; the beginning of its own name.
        beside: the directory to make it in; that for temporary files when None.
        ending: the end of its name, behind some random letters.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, name: str, *, beside: Path | None = None, ending: str = _RUN) -> None:
        parent = Path(tempfile.gettempdir()) if beside is None else beside
        clear_scratch(parent, named(name, ending))
        while True:
            self.path = new_directory(parent, name, ending)
            try:
                held = lock(self.path)
            except (BlockingIOError, FileNotFoundError):
                continue  # before it was locked, another run has taken it for a leftover
            except OSError:
                self.path.rmdir()
                raise
            if self.path.is_dir():
                break
            unlock(held)
        reserve: list[int] = []
        self._remove = weakref.finalize(self, _remove, self.path, held, reserve, os.getpid())
        try:
            reserve += (os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVE))
        except OSError:
            self.path.rmdir()  # which needs no descriptor
            self.remove()
            raise

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> bool:
        """Remove it with all that is in it; returns whether it is gone. Removing it again does nothing."""
        self._remove()
        return not os.path.lexists(self.path)


def _remove(path: Path, held: int | None, reserve: list[int], owner: int) -> None:
    if os.getpid() != owner:  # a forked process ends; the directory is its parent's
        return
    while reserve:
        os.close(reserve.pop())
    shutil.rmtree(path, ignore_errors=True)
    unlock(held)


def new_directory(parent: Path, name: str, ending: str) -> Path:
    """A new, empty directory that only its owner can read, with a name that :func:`named` knows. Its digits are many,
    so that no directory of a user is called so.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = parent / f"{name}{secrets.token_hex(8)}{ending}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path


def try_to_write(parent: Path, name: str) -> None:
    """Make an empty directory and remove it. Neither opens a file, of which few may be left.

    Raises:
        OSError: nothing can be made in ``parent``.
    """
    made = new_directory(parent, name, _RUN)
    with contextlib.suppress(FileNotFoundError):  # another run has taken it for a leftover
        made.rmdir()


def named(name: str, ending: str = _RUN) -> re.Pattern[str]:
    """The names that scratch directories of one kind have."""
    return re.compile(re.escape(name) + _RANDOM + re.escape(ending))


def clear_temporary() -> None:
    """Remove what killed runs of any kind have left where temporary files are."""
    clear_scratch(Path(tempfile.gettempdir()), re.compile("fxprune-[a-z]+-" + _RANDOM + re.escape(_RUN)))


def clear_scratch(parent: Path, names: re.Pattern[str]) -> None:
    """Remove the directories that killed runs have left in ``parent``, see :class:`ScratchDirectory`."""
    for path in leftovers(parent, names):
        with holding(path) as held:
            if held:
                shutil.rmtree(path, ignore_errors=True)


def leftovers(parent: Path, names: re.Pattern[str]) -> list[Path]:
    """Directories of this user that are called so. Some may be in use. Links are none of them."""
    found = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if names.fullmatch(entry.name):
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode) and (not hasattr(os, "getuid") or about.st_uid == os.getuid()):
                    found.append(Path(entry.path))
    return sorted(found)


@contextlib.contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Whether nobody uses a leftover; it is locked while the block runs."""
    try:
        held = lock(path)
    except OSError:
        yield False
        return
    try:
        yield held is not None
    finally:
        unlock(held)
