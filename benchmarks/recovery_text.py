"""The recovery texts of the benchmarks. Nothing is evaluated on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

TRAINING = {"tinystories": ("recover", "calib"), "wikitext2": ("recover",), "bookcorpus": ("calib",)}
"""Text -> its parts, which are read one after the other."""

EACH = {"tinystories": 360_000, "wikitext2": 720_000, "bookcorpus": 360_000}
"""Number of characters of each text for training."""

SPARE = 36_000
"""Number of characters after those, for choosing options: neither trained nor evaluated on."""


def recovery_text(folder: Path, names: Iterable[str], tokenizer: Any) -> Any:
    """The texts with these names as one text, in this order.

    Args:
        folder: the folder with NAME-recover.txt and NAME-calib.txt.
        names: names of the texts.
        tokenizer: the tokenizer.
    """
    from fxprune.tracer.texts.corpus import from_string

    return from_string("recovery", "\n".join(training_characters(folder, name) for name in names), tokenizer)


def spare_text(folder: Path, name: str, tokenizer: Any) -> Any:
    """The part of a text after the characters for training."""
    from fxprune.tracer.texts.corpus import from_string

    return from_string(f"spare {name}", spare_characters(folder, name), tokenizer)


def training_characters(folder: Path, name: str) -> str:
    """What is trained on, of a text."""
    return _read(folder, name)[: EACH[name]]


def spare_characters(folder: Path, name: str) -> str:
    """What options are chosen on, of a text."""
    return _read(folder, name)[EACH[name] :][:SPARE]


def _read(folder: Path, name: str) -> str:
    return "".join((folder / f"{name}-{part}.txt").read_text(encoding="utf-8") for part in TRAINING[name])
