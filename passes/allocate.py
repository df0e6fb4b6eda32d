"""allocate: a budget for the whole model becomes how many units every group keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ir import RequestError
from .costs import LATENCY, MEASURES, Costs

Losses = npt.NDArray[np.float64]
Amounts = npt.NDArray[np.int64]

UNIFORM = "uniform"
WAYS = (UNIFORM, "kinds", "global", "search")
TOLERANCE = 0.005
"""How far from its budget a plan may end, relative to it."""

LEVELS = 256
"""The most widths of one group that are weighed against each other."""

CELLS = 8192
"""The most steps that a budget is divided into."""


@dataclass(frozen=True)
class Target:
    """What a model may cost.

    Attributes:
        measure: ``params``, ``bytes``, ``macs`` or ``latency``.
        value: a share of what the model cost before any pass, below 1; or an amount.
    """

    measure: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``params=0.8`` or ``params:0.8``.

        Raises:
            RequestError: for an unknown measure, and a value that is no share and no amount.
        """
        measure, _, number = text.replace(":", "=", 1).partition("=")
        if measure not in MEASURES:
            raise RequestError(f"target {text!r} names no measure", f"use {', '.join(f'{m}=0.8' for m in MEASURES)}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf or value == 1:
            raise RequestError(
                f"target {text!r} is no share between 0 and 1 and no amount above 1",
                f"{measure}=0.8 keeps four fifths, {measure}=5e9 an amount",
            )
        if measure == LATENCY and value > 1:
            raise RequestError(
                f"target {text!r} is no share, and times are those of this machine only",
                "give a share of what the model takes here: latency=0.8",
            )
        if measure == "bytes" and value > 1:
            raise RequestError(
                f"target {text!r} is an amount, but files are written in the type of the source",
                "give a share, bytes=0.8, or a number of parameters",
            )
        return cls(measure, value)

    def __str__(self) -> str:
        return f"{self.measure}={self.value:g}"

    def amount(self, dense: int) -> int:
        """The budget for a model that cost ``dense``."""
        return round(self.value * dense) if self.value < 1 else round(self.value)


@dataclass(frozen=True)
class Curve:
    """How many units some groups may keep, all of them equally many, and what each choice loses and costs.

    Attributes:
        groups: their names.
        counts: ascending, ``[levels]``.
        losses: what a choice costs in quality, ``[levels]``; least where everything stays.
        costs: of a choice, beyond that of the first one, ``[levels]`` int64.
    """

    groups: tuple[str, ...]
    counts: Amounts
    losses: Losses
    costs: Amounts


def levels(size: int, step: int, minimum: int) -> Amounts:
    """The counts that a group may keep: multiples of ``step`` from ``minimum`` on, thinned out to LEVELS, and all."""
    counts = [count for count in range(step, size, step) if count >= max(1, minimum)]
    if len(counts) >= LEVELS:
        counts = [counts[at] for at in np.unique(np.linspace(0, len(counts) - 1, LEVELS - 1).round().astype(int))]
    return np.array([*counts, size], dtype=np.int64)


class Knapsack:
    """One level of every curve, so that the losses are least and the costs fit (multiple-choice knapsack).

    Solved for all budgets at once by dynamic programming, exactly where the budget divided by the greatest common
    divisor of all costs stays within CELLS; beyond, costs are rounded up to a cell.

    Args:
        curves: at least one.
        budget: the largest that will be asked for.
    """

    def __init__(self, curves: Sequence[Curve], budget: int) -> None:
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
        """The best level of every curve for a budget that is not below 0."""
        left = min(budget // self.cell, self._choices.shape[1] - 1)
        chosen: list[int] = []
        for choices, steps in zip(reversed(self._choices), reversed(self._steps), strict=True):
            level = int(choices[left])
            chosen.append(level)
            left -= int(steps[level])
        return chosen[::-1]


def allocate(curves: Sequence[Curve], costs: Costs, budget: int) -> dict[str, int]:
    """How many units every group keeps, so that the whole costs what it may and loses as little as it can.

    Args:
        curves: every group in one of them.
        costs: of the model.
        budget: what the model may cost; met within TOLERANCE, from below where that can be.

    Raises:
        RequestError: when no plan comes so near; says what the nearest one costs.
    """
    table = Knapsack(curves, sum(int(curve.costs[-1]) for curve in curves))
    found = []
    for limit in (budget, math.floor(budget * (1 + TOLERANCE))):
        chosen = _within(curves, table, costs, limit)
        counts = counts_of(curves, chosen)
        reached = costs.of(counts)
        if abs(reached - budget) <= TOLERANCE * budget:
            return counts
        found.append(reached)
    above = [costs.of(counts_of(curves, up)) for up in _one_up(curves, chosen) if up is not None]
    nearest = min([*found, *above], key=lambda reached: abs(reached - budget))
    dense = costs.of({})
    raise RequestError(
        f"no plan meets a budget of {budget:,} within {TOLERANCE:.1%}: the nearest costs {nearest:,}, "
        f"{nearest / dense:.4f} of the model",
        "ask for that, or let more be cut: other layers, channels=true, a smaller multiple_of",
    )


def counts_of(curves: Sequence[Curve], chosen: Sequence[int]) -> dict[str, int]:
    """Group name -> units that stay, for the levels chosen of every curve."""
    return {name: int(c.counts[level]) for c, level in zip(curves, chosen, strict=True) for name in c.groups}


def _within(curves: Sequence[Curve], table: Knapsack, costs: Costs, limit: int) -> list[int]:
    """The best levels whose exact cost is within a limit, or the smallest ones when none is.

    Costs of groups need not add up (a matrix between two widths that are both cut), so that the budget of the sum is
    searched for.
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


def fill(curves: Sequence[Curve], costs: Costs, chosen: Sequence[int], limit: int) -> list[int]:
    """Spend what rounding left of a limit: as long as one fits, the next level that gains most for what it costs."""
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


def _one_up(curves: Sequence[Curve], chosen: Sequence[int]) -> list[list[int] | None]:
    """For every curve the choices with that one a level higher, None where it is at its highest."""
    return [
        [*chosen[:at], chosen[at] + 1, *chosen[at + 1 :]] if chosen[at] + 1 < len(curve.counts) else None
        for at, curve in enumerate(curves)
    ]


def even(sizes: Mapping[str, int], curves: Sequence[Curve]) -> list[Curve]:
    """Curves whose best choice is the same ratio for all: the loss is the squared ratio, weighed by what it saves.

    With ``c_g`` what all of a curve's units cost, ``sum of c_g r_g**2`` is least for ``sum of c_g r_g`` fixed where all
    ``r_g`` are equal.
    """
    found = []
    for curve in curves:
        ratios = 1 - curve.counts / sizes[curve.groups[0]]
        whole = curve.costs[-1] / ratios[0] if ratios[0] else 0.0
        found.append(Curve(curve.groups, curve.counts, whole * ratios**2, curve.costs))
    return found


def tied(curves: Sequence[Curve], keys: Sequence[object]) -> list[Curve]:
    """One curve for all that have the same key and the same counts: they keep equally many, and lose the sum."""
    joined: dict[tuple[object, tuple[int, ...]], Curve] = {}
    for curve, key in zip(curves, keys, strict=True):
        place = (key, tuple(curve.counts.tolist()))
        known = joined.get(place)
        joined[place] = curve if known is None else Curve(
            known.groups + curve.groups, known.counts, known.losses + curve.losses, known.costs + curve.costs
        )  # fmt: skip
    return list(joined.values())
