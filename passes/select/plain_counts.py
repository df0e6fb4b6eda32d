"""plain_counts: the counts nearest to those asked for that a plain configuration can say.

A configuration may refuse a count (5 heads where the width is 128), or have no field for it apart from another one (as
many heads as fit in the width). Which counts it can say is found by asking it; nothing is known here of any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush

import numpy as np

from ...ir import Indices, RequestError
from ...ir.groups import Group
from .costs import Counts

TRIES = 24
"""Largest number of combinations of counts of several kinds that are asked for."""

FITTING = 12
"""Largest number of counts that are considered for one kind of groups."""

CLOSE = 3
"""Counts at most so many steps away are considered whatever other groups there are."""


@dataclass(frozen=True)
class Moved:
    """Groups for which another count was picked than the one that was asked for.

    Attributes:
        kind, size: what their units are, and how many each group has.
        asked, kept: how many each was to keep, and keeps.
        why: why not as many as were asked for.
    """

    kind: str
    size: int
    asked: int
    kept: int
    why: str

    def to_json(self) -> dict[str, object]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class _Alike:
    """Groups that keep equally many units, in all layers."""

    groups: tuple[Group, ...]
    asked: int
    step: int

    @property
    def size(self) -> int:
        return self.groups[0].size

    def candidates(self, sizes: Sequence[int]) -> list[int]:
        """Smaller counts to try, the nearest to the asked one first, of two equally near ones the smaller.

        Besides those close to it, what is in proportion to a count of other units is likely, and what is a multiple of
        one: ``sizes`` are how many units other groups have.
        """
        least = max(group.minimum for group in self.groups)
        allowed = sorted((c for c in range(self.step, self.size, self.step) if c >= least), key=self.distance)
        fitting = [c for c in allowed if any(c * n % self.size == 0 or c % n == 0 for n in sizes)]
        return sorted({*allowed[: 2 * CLOSE], *fitting[:FITTING]}, key=self.distance)

    def distance(self, count: int) -> tuple[float, int]:
        return abs(count - self.asked) / self.size, count


def nearest_counts(
    groups: Sequence[Group],
    counts: Counts,
    steps: Mapping[str, int],
    others: Sequence[int],
    why_not: Callable[[Counts], str],
) -> tuple[dict[str, int], list[Moved]]:
    """The counts that a plain configuration can say and that are nearest to those asked for.

    Groups with equal sizes and equal counts keep equally many units. Those whose count can be said while all others are
    whole keep it. Of the others each takes the nearest that can be said after those before it; if one of them then
    stays whole, all of them are changed together, nearest combinations first.

    Args:
        groups: those that are cut.
        counts: what was asked for.
        steps: group name -> its count is a multiple of this.
        others: sizes of other groups of the model.
        why_not: why no plain configuration describes the model at some counts; "" when one does.

    Returns:
        The counts, and what was changed.

    Raises:
        RequestError: when nothing can be removed from any of the groups.
    """
    search = _Search(_alike(groups, counts, steps), others, why_not)
    if not (why := search.refused(search.asked)):
        return dict(counts), []
    picked, alone = search.nearest()
    if picked == search.whole:
        raise _refusal(search.alike, why)
    alike = list(zip(search.alike, picked, strict=True))
    moved = [
        Moved(same.groups[0].kind.value, same.size, same.asked, n, alone[i] or why)
        for i, (same, n) in enumerate(alike)
        if n != same.asked
    ]
    return {group.name: n for same, n in alike for group in same.groups}, moved


def _refusal(alike: Sequence[_Alike], why: str) -> RequestError:
    """That nothing can be removed, with the options that may be why."""
    rounded = [same for same in alike if same.asked == same.size and same.step > same.groups[0].multiple]
    whole = dict.fromkeys(
        f"in multiples of {one.step}, all {one.size} units of {one.groups[0].kind.value} stay" for one in rounded
    )
    hints = ["use --form free, or --form auto"]
    if whole:
        hints.append("a smaller multiple_of")
    if len({(same.groups[0].kind, same.size) for same in alike}) < len(alike):
        hints.append("by=kinds, which gives all layers equal widths")
    else:
        hints.append("prune other kinds of groups too, such as channels=true")
    return RequestError(
        f"--form uniform is not possible: no plain configuration describes a smaller model: {'; '.join([*whole, why])}",
        ", or ".join(hints),
    )


class _Search:
    """Asks for counts, for each combination once."""

    def __init__(self, alike: Sequence[_Alike], others: Sequence[int], why_not: Callable[[Counts], str]) -> None:
        self.alike, self._why_not = alike, why_not
        self.asked, self.whole = [same.asked for same in alike], [same.size for same in alike]
        sizes = sorted({*self.whole, *others})
        self._choices = [same.candidates(sizes) for same in alike]
        self._known: dict[tuple[int, ...], str] = {}

    def refused(self, chosen: Sequence[int]) -> str:
        """Why no plain configuration says these counts; "" when one does."""
        key = tuple(chosen)
        if key not in self._known:
            counts = {g.name: n for same, n in zip(self.alike, key, strict=True) for g in same.groups}
            self._known[key] = self._why_not(counts)
        return self._known[key]

    def nearest(self) -> tuple[list[int], list[str]]:
        """The nearest counts that can be said; and why what was asked for cannot, for each kind while all others are
        whole."""
        alone = [
            self.refused(self._with(self.whole, i, n)) if n < self.whole[i] else "" for i, n in _places(self.asked)
        ]
        moving = [i for i, why in enumerate(alone) if why] or [i for i, _ in _places(self.asked)]
        picked = [self.whole[i] if i in moving else n for i, n in _places(self.asked)]
        for i in sorted(moving, key=lambda i: self.whole[i]):
            found = (self._with(picked, i, n) for n in self._choices[i])
            picked = next((counts for counts in found if not self.refused(counts)), picked)
        if len(moving) > 1 and any(picked[i] == self.whole[i] for i in moving):
            together = next((counts for counts in self._together(moving) if not self.refused(counts)), None)
            picked = together or picked
        return ([] if self.refused(picked) else picked) or self.whole, alone

    def _with(self, counts: Sequence[int], i: int, n: int) -> list[int]:
        return [*counts[:i], n, *counts[i + 1 :]]

    def _together(self, moving: Sequence[int]) -> Iterator[list[int]]:
        """Combinations of smaller counts in the order of their summed distance from those asked for."""

        def reached(places: Sequence[int]) -> tuple[float, list[int]]:
            made = list(self.asked)
            for i, place in zip(moving, places, strict=True):
                made[i] = self._choices[i][place]
            return sum(self.alike[i].distance(made[i])[0] for i in moving), made

        start = (0,) * len(moving)
        queue, seen = [(*reached(start), start)] if all(self._choices[i] for i in moving) else [], {start}
        for _ in range(TRIES):
            if not queue:
                return
            _, made, places = heappop(queue)
            yield made
            for at, place in _places(places):
                after = (*places[:at], place + 1, *places[at + 1 :])
                if after[at] < len(self._choices[moving[at]]) and after not in seen:
                    seen.add(after)
                    heappush(queue, (*reached(after), after))


def _places(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(enumerate(values))


def first_units(groups: Sequence[Group], counts: Counts) -> dict[str, Indices]:
    """Some units to keep, for a plan of which only the shapes matter: the first of every parent unit."""
    keep = {}
    for group in groups:
        parents = np.arange(group.units // group.size)[:, None] * group.size
        keep[group.name] = (parents + np.arange(counts[group.name])).ravel().astype(np.int64)
    return keep


def _alike(groups: Sequence[Group], counts: Counts, steps: Mapping[str, int]) -> list[_Alike]:
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        key = (group.kind, group.size, counts[group.name], steps[group.name])
        found.setdefault(key, []).append(group)
    return [_Alike(tuple(same), counts[same[0].name], steps[same[0].name]) for same in found.values()]
