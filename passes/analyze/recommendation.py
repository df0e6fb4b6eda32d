"""Which budget: the largest cut whose measured distance from the dense model stays within a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir import RequestError
from ...ir.groups import Group
from ...runtime.reporting import counted
from ..select.allocate import LossCurve, allocate, even, tied
from ..select.costs import Costs
from ..select.sensitivity import MeasuredAllocation

COARSE = 5
"""Percent of the model between two budgets that are tried first."""

BEYOND = 4.0
"""Budgets are tried until the distance is so many times the bound: what comes after it should be seen too."""

SPARED = 2
"""At each end, the most layers that a cut with equal widths is tried without."""


@dataclass(frozen=True)
class Tried:
    """A budget that was tried.

    Attributes:
        percent: of the model that is kept.
        counts: group name -> units that are kept.
        reached: what the model costs then.
        predicted: the distances of the single cuts, added.
        measured: the distance of all cuts together.
    """

    percent: int
    counts: Mapping[str, int]
    reached: int
    predicted: float
    measured: float

    def to_json(self) -> dict[str, Any]:
        """As JSON data, without the counts."""
        return {
            "share": self.percent / 100, "reached": self.reached, "predicted": round(self.predicted, 9),
            "measured": round(self.measured, 9),
        }  # fmt: skip


@dataclass
class Trial:
    """Tries budgets.

    Attributes:
        search: measures the model.
        costs: what it costs.
        curves: measured, one for each group.
        whole: what it costs before any pass.
        bound: of the distance.
        tolerance: largest relative difference from a budget.
    """

    search: MeasuredAllocation
    costs: Costs
    curves: Sequence[LossCurve]
    whole: int
    bound: float
    tolerance: float
    _known: dict[int, Tried | None] = field(default_factory=dict)

    def recommended(self) -> Tried | None:
        """The smallest budget, in whole percents, whose distance is within the bound; None where there is none."""
        good, bad = 100, 0
        for percent in counted(range(100 - COARSE, 0, -COARSE), "budgets"):
            found = self.at(percent)
            if found is None and percent * self.whole < 100 * self._fewest():
                break
            if found is not None and found.measured <= self.bound and not bad:
                good = percent
            elif found is not None:
                bad = bad or percent
                if found.measured > BEYOND * self.bound:
                    break
        while good - bad > 1:
            middle = (good + bad) // 2
            found = self.at(middle)
            good, bad = (middle, bad) if found is not None and found.measured <= self.bound else (good, middle)
        return self._known.get(good)

    def tried(self) -> list[Tried]:
        """All budgets that were tried and can be met, the largest first."""
        return [found for _, found in sorted(self._known.items(), reverse=True) if found is not None]

    def at(self, percent: int) -> Tried | None:
        """What a budget costs; None where no plan meets it."""
        if percent not in self._known:
            self._known[percent] = self._tried(percent)
        return self._known[percent]

    def _tried(self, percent: int) -> Tried | None:
        try:
            counts = allocate(self.curves, self.costs, round(self.whole * percent / 100), self.tolerance)
        except RequestError:
            return None
        alone = sum(float(c.losses[list(c.counts).index(counts[name])]) for c in self.curves for name in c.groups)
        return Tried(percent, counts, self.costs.of(counts), alone, self.search.distance(counts))

    def _fewest(self) -> int:
        return self.costs.of({name: int(curve.counts[0]) for curve in self.curves for name in curve.groups})

    def equal_widths(self, percent: int, groups: Mapping[str, Group]) -> list[dict[str, Any]]:
        """What a budget costs with equal widths, as JSON: in all layers, as a plain configuration describes it, and in
        the range of layers where it costs least, if that is another one. Where no plan meets the budget, nothing.

        Up to ``SPARED`` layers at each end are left whole.
        """
        layers = sorted({group.layer for group in groups.values() if group.layer is not None})
        ends = range(SPARED + 1) if len(layers) > 2 * SPARED else range(1)
        ranges = [(layers[first], layers[-1 - last] + 1) for first in ends for last in ends] if layers else [(0, 0)]
        tried = [self._even(percent, held, groups) for held in counted(ranges, "ranges of layers")]
        found = [one for one in tried if one is not None]
        best = min(found, key=lambda one: one["measured"], default=None)
        return [one for one in found if one["layers"] is None or one is best]

    def _even(self, percent: int, layers: tuple[int, int], groups: Mapping[str, Group]) -> dict[str, Any] | None:
        """The same for one range of layers; ``layers`` is None where none is left out."""
        held = [c for c in self.curves if (at := groups[c.groups[0]].layer) is None or layers[0] <= at < layers[1]]
        sizes = {name: group.size for name, group in groups.items()}
        alike = even(sizes, tied(held, [(groups[c.groups[0]].kind, groups[c.groups[0]].size) for c in held]))
        try:
            counts = allocate(alike, self.costs, round(self.whole * percent / 100), self.tolerance)
        except RequestError:
            return None
        spared = list(layers) if len(held) < len(self.curves) else None
        return {"layers": spared, "measured": round(self.search.distance(counts), 9)}
