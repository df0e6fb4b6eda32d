"""A file that is the whole result of a run: complete or absent, like a directory of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ir.errors import RequestError
from ..runtime.model_directory.regular_file import open_regular
from .atomic_directory import (
    check_name,
    check_parent,
    check_room,
    clear_leftovers,
    give_modes,
    partial_directory,
    put_in_place,
    write_error,
)
from .seen import Seen

NAMED_FORMATS = frozenset((".onnx", ".safetensors", ".pt2", ".pt", ".bin", ".gguf"))
"""Endings that say what a file holds."""


def check_file_target(
    out: Path,
    *,
    force: bool,
    begins: bytes,
    source: Path | None = None,
    needed: int = 0,
    name: str = "--out",
    example: str = "model.gguf",
) -> Seen:
    """Check that a file can be written. To be called before any work.

    Args:
        out: the file.
        force: whether an existing one may be replaced, if it is of the same format.
        begins: the bytes that every file of the format begins with.
        source: the directory that the model is read from.
        needed: number of bytes that will be written.
        name: what the argument is called.
        example: the name of a file of the format.

    Returns:
        What is there now, for :func:`placed_file`.

    Raises:
        RequestError: it cannot be written; the message gives the path and the reason.
    """
    out, model = out.resolve(), None if source is None else source.resolve()
    check_name(out, name)
    if model in out.parents:
        raise RequestError(
            f"{out} would be a file of the model that is read", f"choose a {name} outside of its directory"
        )
    if out.is_dir():
        # The directory of the model takes no other files: then it is a file beside it.
        place = out.with_name(f"{out.name}{Path(example).suffix}") if out == model else out / example
        raise RequestError(f"{out} is a directory, and this format is one file", f"write {name} {place}")
    _check_ending(out, name, Path(example).suffix)
    if out.exists() and not _begins_with(out, begins):
        why = ", and --force would remove it" if force else ", and is not replaced"
        raise RequestError(
            f"{out} is no file of this format{why}", f"move it elsewhere if you need it; or choose another {name}"
        )
    if out.exists() and not force:
        raise RequestError(f"{out} already exists", f"choose another {name}, or replace it with --force")
    check_parent(out, name)
    check_room(out, needed)
    return Seen.of(out, source)


def _check_ending(out: Path, name: str, ending: str) -> None:
    if out.suffix in NAMED_FORMATS and out.suffix != ending:
        raise RequestError(f"{out} is named like a file of another format", f"give {name} a name that ends in {ending}")


def _begins_with(path: Path, begins: bytes) -> bool:
    try:
        with open_regular(path, links=False) as file:
            return file.read(len(begins)) == begins
    except OSError:
        return False


@contextmanager
def placed_file(out: Path, seen: Seen) -> Iterator[Path]:
    """A path to write to, in a directory of its own beside ``out``. It becomes ``out`` if the block succeeds, in one
    step, else it is removed. What has been made at ``out`` since ``seen`` is never replaced: the new file gets another
    name, and the error says which.

    Args:
        out: the file to make.
        seen: what :func:`check_file_target` found at the beginning of the run.

    Raises:
        RequestError: ``out`` has changed.
        FxpruneError: the disk is full, the file cannot be written, or the model has changed while it was read.
    """
    out = out.resolve()
    clear_leftovers(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial_directory(out) as scratch:
            made = scratch / out.name
            yield made
            give_modes(scratch)
            seen.check_source()
            put_in_place(made, out, seen)
    except OSError as error:
        raise write_error(error, out) from error
