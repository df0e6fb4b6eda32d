"""The one step in which a finished directory or file takes its place, never that of what nobody has looked at."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.scratch import lock, new_directory, unlock
from .seen import Seen, place_stamps

REPLACED = ".replaced-fxprune-"

BESIDE = ".fxprune-"
"""Between the name of a place that was taken and a number: where the result is kept instead."""

PATIENCE = 10.0
"""Seconds to wait for another run that moves directories in the same place, which takes a millisecond. Without the lock
only systems that cannot exchange directories in one step are less safe."""

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2

_AT_FDCWD = -100

_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class Changed(Exception):
    """Something else is at the place by now; the message says what, as the end of a sentence."""


def change_places(made: Path, out: Path, seen: Seen) -> None:
    """Move a result to its place. What was there when the run began is where the result was, or gone, afterwards.

    Args:
        made: the finished directory or file, on the same file system as ``out``.
        out: its place.
        seen: what was there when the run began.

    Raises:
        Changed: something else is there now. It stays, and so does ``made``.
        OSError: it cannot be moved.
    """
    with parent_locked(out):
        now = place_stamps(out)
        if not now:
            try:
                _move(made, out)
            except FileExistsError:
                raise Changed(_made(seen)) from None
            return
        if now != seen.place:
            raise Changed(_made(seen))
        if not _exchange(made, out):
            (os.replace if made.is_file() else _exchange_in_steps)(made, out)
        elif place_stamps(made) != seen.place:  # changed between the two steps above, by a program without our lock
            _exchange(made, out)
            raise Changed(_made(seen))


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False if the system cannot do this (only Linux can)."""
    return _rename(one, other, _RENAME_EXCHANGE)


def _made(seen: Seen) -> str:
    if not seen.place:
        return "was made by something else while this run was working"
    return "is not what it was when this run began"


def keep_beside(made: Path, out: Path) -> Path:
    """Give a finished directory a free name beside its place, which is taken; returns it."""
    for number in itertools.count(2):
        beside = out.with_name(f"{out.name}{BESIDE}{number}")
        try:
            _move(made, beside)
        except FileExistsError:
            continue
        return beside
    raise AssertionError("numbers do not end")


@contextmanager
def parent_locked(out: Path) -> Iterator[None]:
    """While the block runs, no other run moves directories beside ``out``. The lock is on the directory above, and
    leaves nothing behind."""
    held, until = None, time.monotonic() + PATIENCE
    while True:
        try:
            held = lock(out.parent)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
        except OSError:  # it cannot be read, though it can be written
            pass
        break
    try:
        yield
    finally:
        unlock(held)


def _move(made: Path, place: Path) -> None:
    """Move a directory or a file to a place where nothing is.

    Raises:
        FileExistsError: something is.
        OSError: it cannot be moved.
    """
    if _rename(made, place, _RENAME_NOREPLACE):
        return
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
    if made.is_file():
        os.link(made, place)  # which replaces nothing
        made.unlink()
        return
    try:
        made.rename(place)  # of what may be there by now it would replace nothing but an empty directory
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from None
        raise


def _exchange_in_steps(made: Path, out: Path) -> None:
    """Exchange two directories where the system has no single step for it; what was at ``out`` comes back if that
    fails, and with the next run if this one is killed."""
    aside = new_directory(out.parent, f".{out.name}{REPLACED}", "")
    held = lock(out)
    try:
        os.replace(out, aside)
        try:
            os.replace(made, out)
        except BaseException:
            os.replace(aside, out)
            raise
        os.replace(aside, made)
    finally:
        unlock(held)


def _rename(one: Path, other: Path, how: int) -> bool:
    """``renameat2``, which only Linux has; False where the system or the file system cannot do it.

    Raises:
        FileExistsError: nothing was to be replaced, and something is there.
        OSError: it failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), how) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
