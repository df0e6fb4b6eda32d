"""Text files that a call writes beside its result: complete or absent, and in place of nothing but their like."""

from __future__ import annotations

from pathlib import Path

from ...backends.placed_file import check_file_target, placed_file
from ...backends.seen import Seen
from ..places import check_apart
from ..request_checks import check_paths


def claim_text(
    file: str | Path, name: str, *, begins: bytes, force: bool, reads: object = None, example: str = "analysis.json"
) -> Seen:
    """Check that a file can be written. To be called before any work.

    Args:
        file: the file.
        name: what the argument is called.
        begins: the bytes that every such file begins with.
        force: whether one of them may be replaced.
        reads: the model, where it is read from a path.
        example: a name for such a file.

    Raises:
        RequestError: it cannot be written, or is a file of the model.
    """
    check_paths(**{name: file})
    path = Path(file).expanduser()
    source = Path(reads) if isinstance(reads, str | Path) and Path(reads).is_dir() else None
    check_apart(reads={"MODEL": source}, files={name: path})
    return check_file_target(path, force=force, begins=begins, source=source, name=name, example=example)


def write_text(file: str | Path, text: str, seen: Seen) -> None:
    """Write a text file that was claimed.

    Raises:
        RequestError: something else has been put there since.
        FxpruneError: the file cannot be written.
    """
    with placed_file(Path(file).expanduser(), seen) as beside:
        beside.write_text(text, encoding="utf-8")
