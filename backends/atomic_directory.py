"""Directories that are complete or absent: written beside their place, and moved there in one step."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from ..ir.errors import FxpruneError, RequestError
from ..runtime.place.memory import size_text
from ..runtime.scratch import ScratchDirectory, clear_scratch, clear_temporary, holding, leftovers, named, try_to_write
from .change_places import REPLACED, Changed, change_places, keep_beside, parent_locked
from .replaceable import check_replaceable, list_files
from .seen import Seen

PARTIAL = ".partial-fxprune-"

LONGEST_NAME = 255 - len("..halfway") - len(f".{PARTIAL}") - 16
"""Bytes of the name of a result, so that file systems also take the names of what is made beside it."""

SCRATCH = ".fxprune-weights-"
"""Of the directory beside the result for weights that do not fit into memory."""


def check_target(
    out: Path, *, force: bool, source: Path | None = None, needed: int = 0, export: str | None = None
) -> Seen:
    """Check that an output directory can be written. To be called before any work.

    Args:
        out: the directory to write.
        force: whether an existing artifact may be replaced.
        source: the directory that the model is read from; ``out`` must not replace it.
        needed: number of bytes that will be written.
        export: the format of an export, as for :func:`~.replaceable.check_replaceable`.

    Returns:
        What is there now, which :func:`atomic_directory` compares at the end.

    Raises:
        RequestError: it cannot be written; the message gives the path and the reason.
    """
    out = out.resolve()
    check_name(out, "--out")
    if source is not None and (out == source.resolve() or out in source.resolve().parents):
        raise RequestError(f"{out} contains the model that is being read", "choose another --out")
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file, not a directory", "choose another --out")
    if out.exists() and not force:
        raise RequestError(f"{out} already exists", "choose another --out, or replace it with --force")
    if out.exists():
        _check_own_place(out)
        check_replaceable(out, export=export)
    check_parent(out)
    check_room(out, needed)
    return Seen.of(out, source)


def check_parent(out: Path, name: str = "--out") -> None:
    """Refuse a place under a file, or under a directory that cannot be written to; ``name`` is what it is called.

    Raises:
        RequestError: with the path.
    """
    parent = next(path for path in out.parents if path.exists())
    if not parent.is_dir():
        raise RequestError(f"{parent} is a file, not a directory", f"choose another {name}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"{parent} is not writable", f"choose another {name}, or change its permissions")
    try:  # whoever may do everything may still not write there: to /proc, say
        try_to_write(parent, SCRATCH)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise write_error(error, out) from error
        raise RequestError(f"nothing can be written to {parent}: {error.strerror}", f"choose another {name}") from error


def check_name(path: Path, name: str) -> None:
    """Refuse a place whose name leaves no room for the names of what is made beside it.

    Raises:
        RequestError: it is longer than ``LONGEST_NAME``; ``name`` is what the argument is called.
    """
    length = len(os.fsencode(path.name))
    if length > LONGEST_NAME:
        raise RequestError(
            f"{name}: the name {path.name[:40]!r}... is too long: {length} bytes", f"give at most {LONGEST_NAME} bytes"
        )


def _check_own_place(out: Path) -> None:
    """Refuse a directory that cannot be exchanged for another, or that someone stands in."""
    if os.path.ismount(out):
        raise RequestError(f"{out} is a mount point, which cannot be replaced", "choose a directory in it")
    try:
        here = Path.cwd().resolve()
    except OSError:  # the directory was removed
        return
    if out == here or out in here.parents:
        raise RequestError(
            f"{out} contains the directory that this command runs in",
            "run it from another directory, or choose another --out",
        )


def check_room(out: Path, needed: int) -> None:
    """Check that the disk has room for a directory.

    Raises:
        RequestError: with the room that there is, and that is needed.
    """
    parent = next(path for path in out.resolve().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise RequestError(
            f"{parent} has {size_text(free)} free, but {size_text(needed)} are needed",
            "free some space, or choose an --out on another disk",
        )


@contextmanager
def atomic_directory(out: Path, *, force: bool, seen: Seen | None = None, keep: bool = True) -> Iterator[Path]:
    """A temporary directory beside ``out`` to write into. It becomes ``out`` if the block succeeds, else it is removed.

    An existing ``out`` is exchanged for the new directory in one step, so that at any moment there is a complete
    ``out``, old or new. What is at ``out`` by then and was not there before is never removed: the new directory gets
    another name, and the error says which. Files that killed runs left behind are removed first.

    Args:
        out: the directory to make.
        force: whether an existing artifact may be replaced.
        seen: what :func:`check_target` found at the beginning of the run; what is there now when None.
        keep: whether the new directory is kept under another name when it cannot take its place.

    Raises:
        RequestError: as :func:`check_target`, without ``seen``; or ``out`` has changed.
        FxpruneError: the disk is full, a file cannot be written, or the model has changed while it was read.
    """
    out = out.resolve()
    clear_leftovers(out)
    if seen is None:
        seen = check_target(out, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = partial_directory(out)
    except OSError as error:
        raise write_error(error, out) from error
    try:
        try:
            yield scratch.path
            if keep:
                list_files(scratch.path)
            give_modes(scratch.path)
            seen.check_source()
            put_in_place(scratch.path, out, seen, keep=keep)
        finally:
            removed = scratch.remove()
    except (OSError, safetensors.SafetensorError) as error:
        raise write_error(error, out, None if removed else scratch.path) from error


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A path beside a file to write to. It becomes the file if the block succeeds, in one step, else it is removed.

    Raises:
        FxpruneError: the disk is full, or the file cannot be written.
    """
    try:
        with partial_directory(file) as folder:
            yield folder / file.name
            give_modes(folder)
            os.replace(folder / file.name, file)
    except (OSError, safetensors.SafetensorError) as error:
        raise write_error(error, file) from error


def partial_directory(out: Path) -> ScratchDirectory:
    """A directory beside a result, to make it in."""
    return ScratchDirectory(f".{out.name}{PARTIAL}", beside=out.parent, ending="")


def clear_partial(out: Path) -> None:
    """Remove what killed runs left of a file or directory that they were writing."""
    clear_scratch(out.parent, named(f".{out.name}{PARTIAL}", ""))


def put_in_place(made: Path, out: Path, seen: Seen, *, keep: bool = True) -> None:
    """Move a finished result to its place, or where that is taken, beside it.

    Raises:
        RequestError: the place is not as it was when the run began; the message says where the result is.
        FxpruneError: the same, and the result is not kept.
    """
    try:
        change_places(made, out, seen)
    except Changed as error:
        if not keep:
            raise FxpruneError(f"{out} {error}", "another run writes it too") from error
        beside = keep_beside(made, out)
        raise RequestError(f"{out} {error}", f"nothing is lost: the result of this run is {beside}") from error


def give_modes(folder: Path) -> None:
    """Give files and directories the modes that the umask leaves: those of safetensors only their owner can read, and
    what was copied may have been executable. A group that the directory above passes on stays."""
    allowed = ~_umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            inherited = path.stat().st_mode & stat.S_ISGID if path.is_dir() else 0
            path.chmod((0o777 if path.is_dir() else 0o666) & allowed | inherited)


def _umask() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:")), 8)
    except (OSError, StopIteration):  # another system, where it can only be read by changing it for a moment
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def clear_leftovers(out: Path) -> None:
    """Remove what killed runs left beside ``out`` and among temporary files, and restore an artifact that one of them
    had moved aside.

    A run locks what it uses until its process ends, for whatever reason. What is locked is not touched.
    """
    out = out.resolve()
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        return
    with parent_locked(out):
        for path in leftovers(out.parent, named(f".{out.name}{REPLACED}", "")):
            with holding(path) as held:
                if held and not os.path.lexists(out) and any(path.iterdir()):
                    path.rename(out)
                elif held:
                    shutil.rmtree(path, ignore_errors=True)
    clear_partial(out)
    clear_scratch(out.parent, named(SCRATCH))
    clear_temporary()


def write_error(error: Exception, out: Path, left: Path | None = None) -> FxpruneError:
    """The error for the user when writing ``out`` failed. safetensors gives the code of a system error only as text.

    Args:
        error: what was raised.
        out: the directory that was to be written.
        left: what could not be removed; None when nothing remains.
    """
    remains = "no partial files remain" if left is None else f"{left} could not be removed; the next run removes it"
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
        return FxpruneError(f"cannot write {out}: the disk is full", f"free some space; {remains}")
    if getattr(error, "errno", None) == errno.EMFILE or f"os error {errno.EMFILE}" in str(error):
        return FxpruneError(
            f"cannot write {out}: too many files are open", f"allow more, such as with `ulimit -n 1024`; {remains}"
        )
    return FxpruneError(f"cannot write {out}: {error}", f"check the disk and the permissions; {remains}")
