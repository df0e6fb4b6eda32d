"""What a ratio became, in words: heads and widths come in whole units, so that it is not met by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEAR = 0.02
"""Differences from what was asked that need no reason."""


def shares(report: Mapping[str, Any]) -> list[str]:
    """For every pruning pass, a line: the share that each kind of groups lost, and why where that is another one than
    the ratio."""
    lines = []
    for name, entry in report.items():
        if removed := entry.get("removed"):
            asked = entry.get("asked")
            parts = [_part(kind, found, asked) for kind, found in removed.items()]
            lines.append(f"{name} removed {', '.join(parts)}" + ("" if asked is None else f"; ratio={asked:.4g}"))
        lines += [
            f"{name}: {kind} stay as they are, since the code of the model fixes them: {why}"
            for kind, why in entry.get("left_whole", {}).items()
        ]
        lines += [f"{name}: {_picked(**moved)}" for moved in entry.get("nearest", ())]
        lines += [f"{name}: {remark}" for remark in entry.get("remarks", ())]
    return lines


def _picked(kind: str, size: int, asked: int, kept: int, why: str) -> str:
    went = f"{size} {kind} stay" if kept == size else f"{kind} {size} to {kept}"
    return f"{went}, not {asked}, the nearest that a plain configuration can say: {why}"


def _part(kind: str, found: Mapping[str, Any], asked: float | None) -> str:
    share, sizes = found["share"], found["sizes"]
    part = f"{share:.1%} of {kind}"
    if asked is None or abs(share - asked) <= NEAR:
        return part
    return f"{part} ({' or '.join(map(str, sizes[:3]))} in a group{', or more' if len(sizes) > 3 else ''})"
