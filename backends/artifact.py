"""Directories that are complete or absent, and the two files that every artifact carries beside its model."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from ..ir.errors import FxpruneError, RequestError
from ..ir.plan import Indices, Plan
from ..runtime.json_object import read_json_object

try:
    import fcntl
except ImportError:  # only POSIX has it; elsewhere leftovers stay
    fcntl = None  # type: ignore[assignment]

PLAN = "plan.safetensors"
RECORD = "fxprune.json"
MARKS = (RECORD, "config.json")
PARTIAL, REPLACED = ".partial-", ".replaced-"

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def check_target(out: Path, *, force: bool, source: Path | None = None, needed: int = 0) -> None:
    """Refuse a target that cannot be written, before any work.

    Args:
        out: the directory to be.
        force: whether an artifact that is there may be replaced.
        source: what the model is read from, which ``out`` must not replace.
        needed: bytes that will be written.

    Raises:
        RequestError: naming the path and what is in the way.
    """
    out = out.resolve()
    if out.exists() and not force:
        raise RequestError(f"{out} already exists", "choose another output, or replace it with --force")
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file, not a directory", "choose another output")
    if source is not None and (out == source.resolve() or out in source.resolve().parents):
        raise RequestError(f"{out} holds the model that is being read", "choose another output")
    if out.exists() and any(out.iterdir()) and not any((out / mark).is_file() for mark in MARKS):
        raise RequestError(f"{out} holds files but no model", "--force replaces models only; choose another output")
    parent = next(path for path in out.parents if path.exists())
    if not parent.is_dir():
        raise RequestError(f"{parent} is a file, not a directory", "choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"{parent} is not writable", "choose another output, or change its permissions")
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise RequestError(
            f"{parent} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB will be written",
            "free some space, or choose an output on another disk",
        )


@contextmanager
def atomic_directory(out: Path, *, force: bool) -> Iterator[Path]:
    """A temporary sibling of ``out`` to write into; it becomes ``out`` when the block ends well, else it is removed.

    An existing ``out`` is exchanged for the new directory in one step and removed afterwards, so that whoever looks
    at any moment finds the old one or the new one, whole. What runs that were killed left behind is removed first.

    Raises:
        FxpruneError: when the disk fills up or a file cannot be written.
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
    """Remove what killed runs left beside ``out``; an artifact that one had moved aside comes back.

    A run holds a lock on its directory, which ends with its process however that ends; where a lock is held, nothing
    is touched.
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
        # Before it was locked it looked like a leftover to another run, which may have removed it.
        if fcntl is None or (lock is not None and made.is_dir()):
            return made, lock
        _unlock(lock)


def _lock(path: Path) -> int | None:
    """Lock a directory for as long as this process lives; None when another one has it or it is gone."""
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
    """What to tell the user when writing ``out`` failed; safetensors reports the system's error in its text only."""
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
        return FxpruneError(f"the disk is full: writing {out}", "free some space; nothing was left behind")
    return FxpruneError(f"cannot write {out}: {error}", "check the disk and the permissions; nothing was left behind")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(temporary: Path, out: Path) -> None:
    """Put ``temporary`` at ``out``; what was there is at ``temporary`` afterwards."""
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
    """Exchange two directories in one step; False where the system cannot (only Linux can)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def write_plan(folder: Path, plan: Plan) -> None:
    """``plan.safetensors``: key ``<tensor name>:<dim>``, int64 indices kept. The same plan gives the same bytes."""
    tensors = {f"{name}:{dim}": np.ascontiguousarray(kept, dtype=np.int64) for (name, dim), kept in plan.slices.items()}
    save_file(dict(sorted(tensors.items())), folder / PLAN)


def read_plan(path: Path) -> dict[tuple[str, int], Indices]:
    """The slices of a plan file, or of the ``plan.safetensors`` of an artifact.

    Raises:
        RequestError: when the file is missing, damaged, or no plan.
    """
    path = path / PLAN if path.is_dir() else path
    if not path.is_file():
        raise RequestError(f"{path} does not exist", "name a directory that fxprune wrote")
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise RequestError(f"{path} is damaged: {error}", "write the artifact again") from error
    slices: dict[tuple[str, int], Indices] = {}
    for key, kept in tensors.items():
        name, _, dim = key.rpartition(":")
        if not name or not dim.isdecimal() or kept.dtype != np.int64 or kept.ndim != 1:
            raise RequestError(
                f"{path} is not a plan: it holds '{key}', {kept.dtype} of shape {kept.shape}", _PLAN_HINT
            )
        if kept.size == 0 or kept[0] < 0 or (np.diff(kept) <= 0).any():
            raise RequestError(f"{path}: the indices of '{key}' are not ascending from 0 on", _PLAN_HINT)
        slices[name, int(dim)] = kept
    return slices


_PLAN_HINT = "a plan has keys '<tensor name>:<dimension>' and ascending int64 indices"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Readable JSON, keys in the order given."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The ``fxprune.json`` of an artifact.

    Raises:
        RequestError: when it is missing or damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RequestError(f"{path} does not exist", "name a directory that fxprune wrote")
    return read_json_object(path, "write the artifact again")
