"""The places of a call: what it reads must not be what it writes, by whatever name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..backends.atomic_directory import check_name, check_target, clear_leftovers
from ..backends.placed_file import check_file_target
from ..backends.replaceable import CONFIG
from ..backends.seen import Seen
from ..ir.errors import RequestError
from ..runtime.model_files import is_read
from .request_checks import check_model, check_paths, is_path
from .stage_places import is_kept

Named = Mapping[str, object]
"""What an argument is called -> its path. What is no path of something that exists is not read: an id of the Hub, rows,
None."""

_OTHER = "give another path"


def claim(
    out: Path,
    *,
    force: bool,
    resume: bool = False,
    source: Path | None = None,
    export: str | None = None,
    reads: Named | None = None,
    files: Named | None = None,
) -> Seen:
    """Check that a directory can be written, and that nothing that is read is in it. To be called before any work.

    Args:
        out: the directory to write.
        force: whether an existing artifact may be replaced.
        resume: whether an interrupted run is to go on.
        source: the model directory that is read.
        export: the format of an export, which replaces only its like.
        reads: what else is read.
        files: files that are written.

    Returns:
        What is there now, for ``atomic_directory``.

    Raises:
        RequestError: as :func:`~fxprune.backends.atomic_directory.check_target` and :func:`check_apart`.
    """
    check_paths(**{"--out": out})
    clear_leftovers(out)
    _check_unfinished(out, force=force, resume=resume)
    seen = check_target(out, force=force, source=source, export=export)
    check_apart(reads={"MODEL": source, **(reads or {})}, files=files or {}, out=out)
    return seen


def check_early(out: str | Path | None, *, force: bool, resume: bool = False, model: str | None = None) -> None:
    """Refuse a directory that cannot be made or replaced, and a path where no model can be, before torch is imported,
    which takes seconds. :func:`claim` looks again, and at what is read too.

    Args:
        out: the directory to write, if any.
        force: whether what is there may be replaced.
        resume: whether an interrupted run is to go on.
        model: a directory, or a name like demo.

    Raises:
        RequestError: as :func:`~fxprune.backends.atomic_directory.check_target`, and
            :func:`~fxprune.api.request_checks.check_model`.
    """
    check_paths(**{"--out": out})
    if model is not None:
        check_model(model)
    if out is not None:
        source = Path(model) if model is not None and os.path.isfile(Path(model) / CONFIG) else None  # not for "demo"
        _check_unfinished(Path(out), force=force, resume=resume)
        check_target(Path(out), force=force, source=source)


def _check_unfinished(out: Path, *, force: bool, resume: bool) -> None:
    """Refuse to go on with a run of which nothing is kept, but perhaps its result."""
    if resume and not force and out.exists() and not is_kept(out):
        raise RequestError(
            f"{out} already exists, and there is nothing to go on from",
            "if this run wrote it, it is finished; otherwise choose another --out, or replace it with --force",
        )


def places_of_sizes(out: str | Path | None, targets: Sequence[str]) -> list[str | None]:
    """The directory of every size.

    Args:
        out: with the measure in braces where its value goes; None in a dry run.
        targets: one for each size, of one measure.

    Raises:
        RequestError: nothing says where the size goes.
    """
    if out is None:
        return [None for _ in targets]
    check_paths(out=out)
    measure = targets[0].partition("=")[0]
    mark, text = f"{{{measure}}}", os.fspath(out)
    if mark not in text:
        raise RequestError(
            f"--out {text} is one directory, and --target has {len(targets)} sizes",
            f"say where the size goes: --out '{text.rstrip('/')}/{mark}'",
        )
    return [text.replace(mark, one.partition("=")[2]) for one in targets]


def claim_file(out: Path, *, force: bool, begins: bytes, source: Path) -> Seen:
    """The same for a result that is one file, beginning with ``begins``.

    Raises:
        RequestError: as :func:`~fxprune.backends.placed_file.check_file_target`.
    """
    check_paths(**{"--out": out})
    clear_leftovers(out)
    seen = check_file_target(out, force=force, begins=begins, source=source)
    check_apart(reads={"MODEL": source}, files={"--out": out})
    return seen


def check_apart(*, reads: Named, files: Named, out: Path | None = None) -> None:
    """Compare every path that is read with every path that is written, after all links, and by device and inode.

    Args:
        reads: what is read: files, or directories whose files are read.
        files: files that are written, each in one step.
        out: the directory that is replaced as a whole.

    Raises:
        RequestError: naming the two that are the same, or of which one contains the other.
    """
    _check_written(files)
    written = {name: path for name, given in files.items() if (path := _path(given)) is not None}
    for name, given in reads.items():
        path = _path(given)
        for other, place in written.items():
            if path is not None and path.is_dir() and is_read(place.name) and _same(place.parent, path):
                raise RequestError(f"{other} {place} would be a file of the model that is read", _OTHER)
        for file in () if path is None or name in written else _files(path):
            if out is not None and _within(file, out):
                raise RequestError(f"{name} {file} lies in {out}, which this run replaces", _OTHER)
            for other, place in written.items():
                if _same(file, place):
                    raise RequestError(f"{name} {file} is the file that {other} writes", _OTHER)
    for name, place in written.items():
        if out is not None and _within(place, out):
            raise RequestError(f"{name} {place} lies in {out}, which this run replaces", _OTHER)
        for other, second in written.items():
            if name < other and _same(place, second):
                raise RequestError(f"{name} and {other} write the same file {place}", _OTHER)


def _check_written(files: Named) -> None:
    check_paths(**files)
    for name, given in files.items():
        if is_path(given):
            check_name(Path(given), name)


def _path(given: object) -> Path | None:
    if not isinstance(given, str | os.PathLike):
        return None
    try:
        return Path(given).expanduser()
    except RuntimeError:  # the home of a user whom the system does not know
        return None


def _files(path: Path) -> Iterator[Path]:
    """A file, or a directory and all that is directly in it, if they exist."""
    try:
        found = [path, *(sorted(path.iterdir()) if path.is_dir() else ())]
    except OSError:  # too long for a name, or not readable: whoever reads it will say so
        return
    yield from (one for one in found if one.exists())


def _within(path: Path, folder: Path) -> bool:
    """Whether a path leads to a directory or to something in it."""
    end = path.resolve()
    return any(_same(one, folder) for one in (end, *end.parents))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same place; also on a file system that ignores case, and with hard links."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except OSError:
        return False
