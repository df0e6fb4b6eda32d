"""Where a run keeps what ``--resume`` goes on from: beside OUT."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import RequestError

SUFFIX = ".stages"
"""Of the directory with the state after a pass."""

HALFWAY_SUFFIX = ".halfway"
"""Of the directory in which a pass keeps how far it got."""


def beside(out: Path, suffix: str) -> Path:
    """The hidden directory of this ending that belongs to OUT."""
    return out.parent / f".{out.name}{suffix}"


def is_kept(out: Path) -> bool:
    """Whether there is something to go on from."""
    return any(beside(out, suffix).is_dir() for suffix in (SUFFIX, HALFWAY_SUFFIX))


def check_resume(resume: bool, *, dry_run: bool, several: bool = False) -> None:
    """Refuse ``--resume`` where nothing is kept to go on from.

    Args:
        resume: whether it is asked for.
        dry_run: whether nothing is written.
        several: whether several sizes are.

    Raises:
        RequestError: it has no effect.
    """
    if resume and several:
        raise RequestError(
            "--resume has no effect on several sizes", "leave it out; --scores FILE keeps the scores of a run"
        )
    if resume and dry_run:
        raise RequestError("--resume has no effect with --dry-run", "leave out one of the two")
