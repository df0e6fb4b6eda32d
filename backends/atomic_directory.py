"""Directories that are complete or absent: written beside their place, and moved there in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from ..ir.errors import FxpruneError, RequestError
from .artifact import MARKS

try:
    import fcntl
except ImportError:  # only POSIX has it; on other systems the files of killed runs are not removed
    fcntl = None  # type: ignore[assignment]


PARTIAL, REPLACED = ".partial-", ".replaced-"


_RENAME_EXCHANGE = 2


_AT_FDCWD = -100


def check_target(out: Path, *, force: bool, source: Path | None = None, needed: int = 0) -> None:
    """Check that an output directory can be written. To be called before any work.

    Args:
        out: the directory to write.
        force: whether an existing artifact may be replaced.
        source: the directory that the model is read from; ``out`` must not replace it.
        needed: number of bytes that will be written.

    Raises:
        RequestError: it cannot be written; the message gives the path and the reason.
    """
    out = out.resolve()
    if out.exists() and not force:
        raise RequestError(f"{out} already exists", "choose another --out, or replace it with --force")
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file, not a directory", "choose another --out")
    if source is not None and (out == source.resolve() or out in source.resolve().parents):
        raise RequestError(f"{out} contains the model that is being read", "choose another --out")
    if out.exists() and any(out.iterdir()) and not any((out / mark).is_file() for mark in MARKS):
        raise RequestError(f"{out} contains files, but no model", "--force replaces only models; choose another --out")
    parent = next(path for path in out.parents if path.exists())
    if not parent.is_dir():
        raise RequestError(f"{parent} is a file, not a directory", "choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"{parent} is not writable", "choose another --out, or change its permissions")
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise RequestError(
            f"{parent} has {free / 1e9:.2f} GB free, but {needed / 1e9:.2f} GB are needed",
            "free some space, or choose an --out on another disk",
        )


@contextmanager
def atomic_directory(out: Path, *, force: bool) -> Iterator[Path]:
    """A temporary directory beside ``out`` to write into. It becomes ``out`` if the block succeeds, else it is removed.

    An existing ``out`` is exchanged for the new directory in one step, so that at any moment there is a complete
    ``out``, old or new. Files that killed runs left behind are removed first.

    Raises:
        FxpruneError: the disk is full, or a file cannot be written.
    """
    out = out.resolve()
    clear_leftovers(out)
    check_target(out, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _locked_directory(out)
    except OSError as error:
        raise write_error(error, out) from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for path in temporary.rglob("*"):  # safetensors writes files that only their owner can read
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
        _swap(temporary, out)
    except (OSError, safetensors.SafetensorError) as error:
        raise write_error(error, out) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unlock(lock)


def clear_leftovers(out: Path) -> None:
    """Remove what killed runs left beside ``out``, and restore an artifact that such a run had moved aside.

    A run locks its temporary directory until its process ends, for whatever reason. A locked directory is not touched.
    """
    out = out.resolve()
    if fcntl is None or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        return
    for path in sorted(out.parent.iterdir()):
        if not path.name.startswith((f".{out.name}{PARTIAL}", f".{out.name}{REPLACED}")) or not path.is_dir():
            continue
        lock = _lock(path)
        if lock is None:
            continue
        try:
            aside = path.name.startswith(f".{out.name}{REPLACED}")
            if aside and not out.exists() and any((path / mark).is_file() for mark in MARKS):
                os.replace(path, out)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            _unlock(lock)


def _locked_directory(out: Path) -> tuple[Path, int | None]:
    """A new directory beside ``out``, locked."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}{PARTIAL}", dir=out.parent))
        lock = _lock(made)
        # Before it was locked, another run may have taken it for a leftover and removed it.
        if fcntl is None or (lock is not None and made.is_dir()):
            return made, lock
        _unlock(lock)


def _lock(path: Path) -> int | None:
    """Lock a directory until this process ends; None when another process has locked it, or it is gone."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def write_error(error: Exception, out: Path) -> FxpruneError:
    """The error for the user when writing ``out`` failed. safetensors gives the code of a system error only as text."""
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
        return FxpruneError(f"cannot write {out}: the disk is full", "free some space; no partial files remain")
    return FxpruneError(f"cannot write {out}: {error}", "check the disk and the permissions; no partial files remain")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(temporary: Path, out: Path) -> None:
    """Move ``temporary`` to ``out``; an old ``out`` is at ``temporary`` afterwards."""
    if not out.exists():
        os.replace(temporary, out)
        return
    if _exchange(temporary, out):
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}{REPLACED}", dir=out.parent))
    lock = _lock(out)
    try:
        os.replace(out, aside)
        try:
            os.replace(temporary, out)
        except BaseException:
            os.replace(aside, out)
            raise
        os.replace(aside, temporary)
    finally:
        _unlock(lock)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False if the system cannot do this (only Linux can)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
