"""Groups held to the counts of heads and experts that a runtime needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ...ir.groups import HEAD_KINDS, Group, Kind, Role
from .runtimes import RUNTIMES, Runtime
from .select import kept_count


def aligned(groups: Iterable[Group], name: str | None, share: float | None) -> list[Group]:
    """The groups with the multiples of heads and experts that a runtime needs; widths follow ``multiple_of``.

    Args:
        groups: those that are cut.
        name: of the runtime; None for any.
        share: of the units that is to go, where it is known.
    """
    if name is None:
        return list(groups)
    need = RUNTIMES[name]
    return [replace(group, multiple=math.lcm(group.multiple, _multiple(group, need, share))) for group in groups]


def _multiple(group: Group, need: Runtime, share: float | None) -> int:
    if group.kind in HEAD_KINDS:
        together = group.parent.size if group.parent is not None else 1
        columns = [m.axis.size // group.units * together for m in group.members if m.role is Role.IN]
        found = [need.columns // math.gcd(need.columns, each) for each in columns]
        return min(group.size, math.lcm(*found, need.heads if group.parent is None else 1))
    if group.kind is Kind.EXPERTS and need.experts:
        parents = group.parent.size if group.parent is not None else 1
        least = kept_count(group.size, 0.5 if share is None else share, 1, group.minimum)
        known = (count for count in range(least, group.size) if parents * count in need.experts)
        return next(known, group.size)
    return 1


def remarks_on_runtime(before: Iterable[Group], groups: Iterable[Group], name: str | None) -> list[str]:
    """What a runtime holds whole, for the user: before and after :func:`aligned`, in the same order."""
    whole = [group for old, group in zip(before, groups, strict=True) if group.size == group.multiple > old.multiple]
    first = {group.kind.value: group.name for group in reversed(whole)}
    return [f"runtime={name} leaves {kind} whole, such as {first[kind]}" for kind in sorted(first)]
