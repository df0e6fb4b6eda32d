"""allocate: turn a budget for the whole model into the number of units that every group keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ir import RequestError
from .costs import Costs
from .target import BUDGET_TOLERANCE

Losses = npt.NDArray[np.float64]
Amounts = npt.NDArray[np.int64]

LEVELS = 256
"""Largest number of widths that are considered for one group."""

CELLS = 8192
"""Largest number of cells that a budget is divided into."""


@dataclass(frozen=True)
class LossCurve:
    """The possible widths of some groups that keep equal numbers of units, with the loss and cost of each width.

    Attributes:
        groups: their names.
        counts: units that each group keeps, ascending, ``[levels]``.
        losses: loss of quality at each count, ``[levels]``; smallest where all units are kept.
        costs: cost at each count minus the cost at the first, int64 ``[levels]``.
    """

    groups: tuple[str, ...]
    counts: Amounts
    losses: Losses
    costs: Amounts


def levels(size: int, step: int, minimum: int) -> Amounts:
    """The counts that a group may keep: multiples of ``step`` from ``minimum`` on, at most LEVELS, and ``size``."""
    counts = [count for count in range(step, size, step) if count >= max(1, minimum)]
    if len(counts) >= LEVELS:
        counts = [counts[at] for at in np.unique(np.linspace(0, len(counts) - 1, LEVELS - 1).round().astype(int))]
    return np.array([*counts, size], dtype=np.int64)


class Knapsack:
    """Chooses one level of every curve: the smallest total loss within the budget (multiple-choice knapsack).

    Dynamic programming solves it for all budgets at once. The result is exact when the budget divided by the greatest
    common divisor of all costs is at most CELLS; otherwise costs are rounded up to whole cells.

    Args:
        curves: at least one.
        budget: the largest budget that :meth:`at` will get.
    """

    def __init__(self, curves: Sequence[LossCurve], budget: int) -> None:
        divisor = math.gcd(*(int(cost) for curve in curves for cost in curve.costs)) or 1
        self.cell = max(divisor, math.ceil(budget / CELLS))
        cells = budget // self.cell
        best = np.zeros(cells + 1)
        self._choices = np.zeros((len(curves), cells + 1), dtype=np.int32)
        self._steps = [-(-curve.costs // self.cell) for curve in curves]
        for at, (curve, steps) in enumerate(zip(curves, self._steps, strict=True)):
            found = np.full(cells + 1, np.inf)
            for level, (loss, step) in enumerate(zip(curve.losses, steps.tolist(), strict=True)):
                if step <= cells:
                    reached = best[: cells + 1 - step] + loss
                    better = reached < found[step:]
                    found[step:][better] = reached[better]
                    self._choices[at, step:][better] = level
            best = found

    def at(self, budget: int) -> list[int]:
        """The best level of every curve for a budget of 0 or more."""
        left = min(budget // self.cell, self._choices.shape[1] - 1)
        chosen: list[int] = []
        for choices, steps in zip(reversed(self._choices), reversed(self._steps), strict=True):
            level = int(choices[left])
            chosen.append(level)
            left -= int(steps[level])
        return chosen[::-1]


def allocate(
    curves: Sequence[LossCurve], costs: Costs, budget: int, tolerance: float = BUDGET_TOLERANCE
) -> dict[str, int]:
    """How many units every group keeps: the smallest total loss whose cost meets the budget.

    Args:
        curves: together they hold every group once.
        costs: the cost model.
        budget: what the model may cost; met from below if possible.
        tolerance: the largest relative difference from it.

    Raises:
        RequestError: when no plan is that close; the message gives the nearest cost.
    """
    table = Knapsack(curves, sum(int(curve.costs[-1]) for curve in curves))
    found = []
    for limit in (budget, math.floor(budget * (1 + tolerance))):
        chosen = _within(curves, table, costs, limit)
        counts = counts_of(curves, chosen)
        reached = costs.of(counts)
        if abs(reached - budget) <= tolerance * budget:
            return counts
        found.append(reached)
    above = [costs.of(counts_of(curves, up)) for up in _one_up(curves, chosen) if up is not None]
    nearest = min([*found, *above], key=lambda reached: abs(reached - budget))
    dense, enough = costs.of({}), _above(abs(nearest - budget) / budget)
    raise RequestError(
        f"no plan meets a budget of {costs.shown(budget)} within {tolerance:.1%}: the nearest costs "
        f"{costs.shown(nearest)}, {nearest / dense:.4f} of the model",
        f"use that as the target{f', or tolerance={enough:g}' if enough < 1 else ''}; or allow more to be cut: "
        "more layers, channels=true, a smaller multiple_of",
    )


def _above(share: float) -> float:
    """The next thousandth above a share."""
    return math.ceil(share * 1000 + 1e-9) / 1000


def counts_of(curves: Sequence[LossCurve], chosen: Sequence[int]) -> dict[str, int]:
    """Group name -> units that are kept, for the chosen level of every curve."""
    return {name: int(c.counts[level]) for c, level in zip(curves, chosen, strict=True) for name in c.groups}


def _within(curves: Sequence[LossCurve], table: Knapsack, costs: Costs, limit: int) -> list[int]:
    """The best levels whose exact cost is within a limit; the smallest levels when none is.

    The costs of groups need not add up, because a matrix can lie between two widths that are both cut. So this searches
    for the summed budget whose solution has an exact cost within the limit.
    """
    low, high = 0, sum(int(curve.costs[-1]) for curve in curves)
    while low < high:
        middle = (low + high + 1) // 2
        if costs.of(counts_of(curves, table.at(middle))) <= limit:
            low = middle
        else:
            high = middle - 1
        if high - low < table.cell:
            break
    return fill(curves, costs, table.at(low), limit)


def fill(curves: Sequence[LossCurve], costs: Costs, chosen: Sequence[int], limit: int) -> list[int]:
    """Spend what rounding left of the limit: raise the level with the best gain per cost as long as one fits."""
    chosen = list(chosen)
    cost = costs.of(counts_of(curves, chosen))
    while True:
        steps = []
        for at, up in enumerate(_one_up(curves, chosen)):
            if up is None:
                continue
            reached = costs.of(counts_of(curves, up))
            if cost < reached <= limit:
                gain = curves[at].losses[chosen[at]] - curves[at].losses[up[at]]
                steps.append((gain / (reached - cost), -at, reached, up))
        if not steps:
            return chosen
        _, _, cost, chosen = max(steps, key=lambda step: step[:2])


def _one_up(curves: Sequence[LossCurve], chosen: Sequence[int]) -> list[list[int] | None]:
    """For every curve, the chosen levels with that curve one level higher; None where it is at its highest."""
    return [
        [*chosen[:at], chosen[at] + 1, *chosen[at + 1 :]] if chosen[at] + 1 < len(curve.counts) else None
        for at, curve in enumerate(curves)
    ]


def even(sizes: Mapping[str, int], curves: Sequence[LossCurve]) -> list[LossCurve]:
    """Curves whose best choice is the same ratio for all groups; one whose steps are coarse loses no more than that.

    A step is charged twice the ratio that is removed after it, for each unit of its cost. With ``c_g`` the cost of all
    units of a curve of fine steps and ``r_g`` the ratio removed, that is ``c_g r_g**2``, whose sum for a fixed
    ``sum of c_g r_g`` is smallest where all ``r_g`` are equal. A step as coarse as one of three heads is worth its
    charge only where the others lose as much: counts are rounded up, as for a ratio.
    """
    found = []
    for curve in curves:
        ratios = 1 - curve.counts / sizes[curve.groups[0]]
        steps = np.diff(curve.costs) * 2 * ratios[:-1]
        losses = np.append(np.cumsum(steps[::-1])[::-1], 0.0)
        found.append(LossCurve(curve.groups, curve.counts, losses, curve.costs))
    return found


def tied(curves: Sequence[LossCurve], keys: Sequence[object]) -> list[LossCurve]:
    """Join curves with the same key and the same counts: their groups keep equal numbers, and the losses add up."""
    joined: dict[tuple[object, tuple[int, ...]], LossCurve] = {}
    for curve, key in zip(curves, keys, strict=True):
        place = (key, tuple(curve.counts.tolist()))
        known = joined.get(place)
        joined[place] = curve if known is None else LossCurve(
            known.groups + curve.groups, known.counts, known.losses + curve.losses, known.costs + curve.costs
        )  # fmt: skip
    return list(joined.values())
