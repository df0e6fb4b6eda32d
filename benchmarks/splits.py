"""Which part of which text is for what, in every benchmark that chooses options by what it measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fxprune.benchmarks.known_models import runs
from fxprune.benchmarks.recovery_text import TRAINING, spare_characters, training_characters

Read = Callable[[Path, str], str]
"""Folder of texts, name of a text -> the characters of a use."""


@dataclass(frozen=True)
class Declared:
    """The splits of a benchmark.

    Attributes:
        texts: names of its texts.
        uses: what is read for what. Nothing is read for two uses.
    """

    texts: tuple[str, ...]
    uses: Mapping[str, Read]


def _evaluated(folder: Path, name: str) -> str:
    return (folder / f"{name}-eval.txt").read_text(encoding="utf-8")


RECOVERED = Declared(
    tuple(TRAINING), {"training": training_characters, "validation": spare_characters, "evaluation": _evaluated}
)

KNOWN = Declared(runs.TEXTS, {use: partial(runs.characters, use=use) for use in runs.SPLITS})

DECLARED = {
    "known_models/runs.py": KNOWN,
    "known_models/recovered.py": KNOWN,
    "quality_runs.py": RECOVERED,
    "recovery.py": RECOVERED,
}
"""File in benchmarks/ that has options and a choice among them -> its splits."""
