"""Which layers and parts of layers a pass took out, in words, with the scores that decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 24
"""Largest number of parts that are named one by one."""


def dropped(report: Mapping[str, Any]) -> list[str]:
    """For every pass that took layers or parts of layers out, a line for each of the two kinds."""
    lines = []
    for name, entry in report.items():
        if entry.get("dropped"):
            lines.append(f"{name} removed {_layers(entry)}")
        if found := entry.get("sub_blocks"):
            lines.append(f"{name} removed {_parts([part['module'] for part in found], entry)}")
    return lines


def _layers(entry: Mapping[str, Any]) -> str:
    """``layers 3, 7 of 12 (influence 0.02, 0.03; of the others 0.05 to 0.4)``."""
    gone, scores = entry["dropped"], entry["scores"]
    if entry["by"] != "influence":
        order = entry.get("order", gone)
        which = "layer" if len(order) == 1 else "layers, in this order,"
        return f"{which} {_listed(order)} ({entry['by']} without: {_listed(map(_score, scores))})"
    rest = [score for index, score in enumerate(scores) if index not in gone]
    which = f"{'layer' if len(gone) == 1 else 'layers'} {_listed(gone)} of {len(scores)}"
    return f"{which} (influence {_listed(_score(scores[index]) for index in gone)}{_others(rest)})"


def _parts(gone: Sequence[str], entry: Mapping[str, Any]) -> str:
    """The same of parts of layers, whose scores are by path. Numbers are those after whole layers went."""
    found = entry["sub_block_scores"]
    scores = [_score(found["scores"][path]) for path in gone if path in found["scores"]]
    after = ", numbered without these layers" if entry.get("dropped") else ""
    if found["by"] != "influence":
        return f"{_listed(gone)}{after} ({found['by']} without: {_listed(scores)})"
    rest = [score for path, score in found["scores"].items() if path not in gone]
    return f"{_listed(gone)}{after} (influence {_listed(scores)}{_others(rest)})"


def _others(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    low, high = _score(min(scores)), _score(max(scores))
    return f"; of the others {low if low == high else f'{low} to {high}'}"


def _score(value: float) -> str:
    return f"{value:.3g}"


def _listed(items: Any) -> str:
    words = [str(item) for item in items]
    more = f" and {len(words) - SHOWN} more, see --json" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
