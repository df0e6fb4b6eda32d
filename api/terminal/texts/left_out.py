"""What was left out of the texts that were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def left_out(texts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every text with rows that hold no value.

    Args:
        texts: the entries of ``fxprune.json``.
    """
    found = []
    for entry in texts:
        if nulls := (entry.get("read_from") or {}).get("nulls"):
            rows = "1 row" if nulls == 1 else f"{nulls:,} rows"
            found.append(f"{entry['read_as']} text {entry['name']}: {rows} without a value left out")
    return list(dict.fromkeys(found))
