"""select: from scores and a ratio, choose the units that every group keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from ...ir import Indices, RequestError
from ...ir.groups import Group, Kind
from ..data import Scores


def kept_count(size: int, ratio: float, multiple_of: int = 1, minimum: int = 1) -> int:
    """How many of ``size`` units are kept for a ratio, rounded up to a multiple, at least ``minimum``.

    Args:
        size: present number of units.
        ratio: share to remove, in [0, 1).
        multiple_of: the count is rounded up to a multiple of this, but not above ``size``.
        minimum: smallest count for any ratio.
    """
    exact = size * (1 - Fraction(str(ratio)))
    count = math.ceil(math.ceil(exact) / multiple_of) * multiple_of
    return max(minimum, min(size, count))


def step_of(group: Group, multiple_of: int = 1) -> int:
    """The number of units that a group keeps is a multiple of this; ``multiple_of`` applies to widths only."""
    return math.lcm(group.multiple, multiple_of if group.kind in (Kind.WIDTH, Kind.CHANNELS) else 1)


def best_units(group: Group, scores: Scores, count: int) -> Indices:
    """The ``count`` units with the highest scores, per parent unit in a nested group; ties go to the lower index.

    Returns:
        Sorted int64 unit numbers.
    """
    rows = scores.reshape(-1, group.size)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    units = order + np.arange(len(rows))[:, None] * group.size
    return np.sort(units.ravel()).astype(np.int64)


def select(
    groups: Sequence[Group], scores: Mapping[str, Scores], ratio: float, multiple_of: int = 1
) -> dict[str, Indices]:
    """Choose the units to keep with the same ratio for every group, so that groups of equal size stay equally wide.

    Args:
        groups: the groups to cut.
        scores: group name -> scores of its units.
        ratio: share to remove, in [0, 1).
        multiple_of: widths other than heads become multiples of this.

    Raises:
        RequestError: when the groups are so small that a ratio above 0 removes nothing.
    """
    counts = counts_for(groups, ratio, multiple_of)
    return {group.name: best_units(group, scores[group.name], counts[group.name]) for group in groups}


def counts_for(groups: Sequence[Group], ratio: float, multiple_of: int = 1) -> dict[str, int]:
    """How many units every group keeps for a ratio; for a nested group, per parent unit.

    Raises:
        RequestError: when the groups are so small that a ratio above 0 removes nothing.
    """
    counts = {g.name: kept_count(g.size, ratio, step_of(g, multiple_of), g.minimum) for g in groups}
    if ratio > 0 and all(counts[group.name] == group.size for group in groups):
        raise _nothing_to_remove(groups, ratio, multiple_of)
    return counts


def _nothing_to_remove(groups: Sequence[Group], ratio: float, multiple_of: int) -> RequestError:
    """The error for a ratio that rounds to nothing: the steps in which each kind can lose units, and the least ratio
    that removes something."""
    steps = {group.name: step_of(group, multiple_of) for group in groups}
    sizes = {
        f"{group.kind.value} {group.size}" + (f" in multiples of {steps[group.name]}" if steps[group.name] > 1 else "")
        for group in groups
    }
    below = {group.name: (group.size - 1) // steps[group.name] * steps[group.name] for group in groups}
    shares = [Fraction(g.size - below[g.name], g.size) for g in groups if below[g.name] >= max(g.minimum, 1)]
    advice = [f"give a ratio of {math.ceil(min(shares) * 1000) / 1000:g} or more"] if shares else []
    if any(step > 1 for step in steps.values()):
        advice.append("ask for smaller multiples (--multiple-of, --for)")
    return RequestError(
        f"nothing to remove: ratio {ratio} is less than one step in groups of {', '.join(sorted(sizes))}",
        " or ".join(advice) or "let other groups be cut: all layers, heads, channels=true",
    )


def removed_shares(groups: Sequence[Group], keep: Mapping[str, Indices]) -> dict[str, dict[str, object]]:
    """What the groups of every kind lost: kind -> the ``share`` of their units, from 0 to 1, and their ``sizes``."""
    found: dict[str, dict[str, object]] = {}
    for kind in sorted({group.kind.value for group in groups}):
        alike = [group for group in groups if group.kind.value == kind]
        units = sum(group.units for group in alike)
        kept = sum(len(keep[group.name]) if group.name in keep else group.units for group in alike)
        found[kind] = {"share": round(1 - kept / units, 6), "sizes": sorted({group.size for group in alike})}
    return found
