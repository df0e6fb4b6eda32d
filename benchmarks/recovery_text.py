"""The texts that recovery is trained on in the benchmarks: none that anything is evaluated on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

TRAINING = {"tinystories": ("recover", "calib"), "wikitext2": ("recover",), "bookcorpus": ("calib",)}
"""Text -> the parts of it that are read, one after the other."""

EACH = {"tinystories": 360_000, "wikitext2": 720_000, "bookcorpus": 360_000}
"""Characters of each text that are trained on."""

SPARE = 36_000
"""Characters after those, for choosing options: neither trained nor evaluated on."""


def recovery_text(folder: Path, names: Iterable[str], tokenizer: Any) -> Any:
    """The named texts as one running text, in the order given.

    Args:
        folder: holds NAME-recover.txt and NAME-calib.txt.
        names: of the texts.
        tokenizer: what cuts them into tokens.
    """
    from fxprune.tracer.text import from_string

    return from_string("recovery", "\n".join(_read(folder, name)[: EACH[name]] for name in names), tokenizer)


def spare_text(folder: Path, name: str, tokenizer: Any) -> Any:
    """What comes after the characters of a text that are trained on."""
    from fxprune.tracer.text import from_string

    return from_string(f"spare {name}", _read(folder, name)[EACH[name] :][:SPARE], tokenizer)


def _read(folder: Path, name: str) -> str:
    return "".join((folder / f"{name}-{part}.txt").read_text(encoding="utf-8") for part in TRAINING[name])
