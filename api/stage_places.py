"""Where a run keeps what ``--resume`` goes on from: beside OUT."""

from __future__ import annotations

from pathlib import Path

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
