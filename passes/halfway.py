"""Where a pass that takes long may keep how far it got, so that a run that breaks off can go on inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Halfway:
    """What whoever runs the pipeline gives to the pass that runs.

    Attributes:
        folder: for its files; need not exist. It is removed after the pass.
        run: what the result of the run depends on, as JSON data.
        place: number of the pass in the pipeline, from 1.
        go_on: whether to go on from what is there.
        differs: what differs between the ``run`` that a file names and this one, as text; empty for nothing.
        tell: told what could not be kept.
        every: seconds between two times of keeping.
    """

    folder: Path
    run: Mapping[str, Any]
    place: int
    go_on: bool
    differs: Callable[[Mapping[str, Any]], str]
    tell: Callable[[str], None]
    every: float
