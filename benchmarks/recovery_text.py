"""The texts that recovery is trained on in the benchmarks: none that anything is evaluated on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

TRAINING = {"tinystories": ("recover", "calib"), "wikitext2": ("recover",), "bookcorpus": ("calib",)}
"""Text -> the parts of it that are read, one after the other."""

EACH = {"tinystories": 360_000, "wikitext2": 720_000, "bookcorpus": 360_000}
"""Characters of each text that are trained on."""


def recovery_text(folder: Path, names: Iterable[str], tokenizer: Any) -> Any:
    """The named texts as one running text, in the order given.

    Args:
        folder: holds NAME-recover.txt and NAME-calib.txt.
        names: of the texts.
        tokenizer: what cuts them into tokens.
    """
    from fxprune.tracer.text import from_string

    read = [
        "".join((folder / f"{name}-{part}.txt").read_text(encoding="utf-8") for part in TRAINING[name])[: EACH[name]]
        for name in names
    ]
    return from_string("recovery", "\n".join(read), tokenizer)
