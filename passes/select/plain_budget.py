"""plain_budget: a budget that is met with counts that a plain configuration can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...ir import RequestError
from ...ir.groups import Group
from .allocate import LossCurve
from .costs import Counts
from .plain_counts import Moved

Choose = Callable[[Sequence[LossCurve]], dict[str, int]]
"""Meets the budget: how many units the groups of the curves keep."""

Plain = Callable[[Counts], tuple[dict[str, int], list[Moved]]]
"""The nearest counts that a plain configuration can say, and what was changed."""


def plain_within_budget(
    groups: Sequence[Group], curves: Sequence[LossCurve], choose: Choose, plain: Plain
) -> tuple[dict[str, int], list[Moved]]:
    """Counts that meet a budget and that a plain configuration can say.

    What the configuration changes costs more or less than what was chosen. So these groups are held at their new
    counts, or whole where the others cannot make up for it, and the rest of the budget is distributed again.

    Args:
        groups: those that are cut.
        curves: together they hold every group once.
        choose: raises RequestError where the budget cannot be met.
        plain: asked for every choice.

    Returns:
        The counts, and what the configuration changed in them.

    Raises:
        RequestError: no such counts meet the budget; as ``plain`` does.
    """
    counts = choose(curves)
    held: dict[str, int] = {}
    asked: dict[str, tuple[int, str]] = {}
    while True:
        found, moved = plain(counts)
        if not moved:
            return counts, _changed(groups, counts, asked)
        for group in groups:
            if found[group.name] != counts[group.name]:
                asked.setdefault(group.name, (counts[group.name], _why(group, counts, moved)))
        # A count that is changed although it was held goes with the counts of all others.
        new = {name: count for name, count in found.items() if count != counts[name]}
        held = {**held, **new} if new.keys() - held.keys() else dict(found)
        counts, kept = _chosen_again(groups, curves, held, choose)
        for name in asked.keys() & held.keys():
            if kept[name] != held[name]:
                asked[name] = (asked[name][0], f"the budget is not met with {held[name]}; {asked[name][1]}")
        held = kept


def _chosen_again(
    groups: Sequence[Group], curves: Sequence[LossCurve], held: dict[str, int], choose: Choose
) -> tuple[dict[str, int], dict[str, int]]:
    """What meets the budget with some groups held at their counts, or else whole; and at which of both."""
    whole = {group.name: group.size for group in groups if group.name in held}
    try:
        return choose(_holding(curves, held)), held
    except RequestError as missed:
        if whole != held:
            try:
                return choose(_holding(curves, whole)), whole
            except RequestError:
                pass  # the first miss is with the counts nearest to those that were asked for
        alike = dict.fromkeys(
            (group.size, group.kind.value, held[group.name]) for group in groups if group.name in held
        )
        kept = " and ".join(
            f"all {size} {kind}" if count == size else f"{count} of {size} {kind}" for size, kind, count in alike
        )
        raise RequestError(
            f"{missed.message}, where a plain configuration keeps {kept}", f"{missed.hint}; or use --form free"
        ) from None


def _holding(curves: Sequence[LossCurve], held: Mapping[str, int]) -> list[LossCurve]:
    """The curves, with one possible width for each group that is held."""
    found = []
    for curve in curves:
        if held.keys() >= set(curve.groups):
            found += [_only(name, held[name]) for name in curve.groups]
        else:
            found.append(curve)
    return found


def _only(name: str, count: int) -> LossCurve:
    return LossCurve((name,), np.array([count], dtype=np.int64), np.zeros(1), np.zeros(1, dtype=np.int64))


def _why(group: Group, counts: Counts, moved: Sequence[Moved]) -> str:
    key = (group.kind.value, group.size, counts[group.name])
    return next(one.why for one in moved if (one.kind, one.size, one.asked) == key)


def _changed(groups: Sequence[Group], counts: Counts, asked: Mapping[str, tuple[int, str]]) -> list[Moved]:
    """What is kept of other counts than were asked for, once for all groups that are alike."""
    found = [
        Moved(group.kind.value, group.size, asked[group.name][0], counts[group.name], asked[group.name][1])
        for group in groups
        if group.name in asked and counts[group.name] != asked[group.name][0]
    ]
    return list(dict.fromkeys(found))
