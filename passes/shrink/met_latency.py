"""A time that is met: the model that a plan leaves is timed against the one there is, and the plan corrected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from ...ir import FxpruneError, Indices
from ..couple.coupling import Coupling
from ..select.latency import Latency, forward_seconds
from ..select.target import BUDGET_TOLERANCE
from ..state import Ledger, State, Subject
from .fitting import cut_what_fits

LARGEST_MISS = 0.05
"""Largest relative difference between the time that was asked for and the measured one, where nothing else is said. It
is also how much repeats of a timing may differ before the machine counts as busy."""

PLANS = 3
"""Most plans that are tried."""

ROUNDS = 5
"""How often the two models are timed, in turn, so that other load of the machine meets both."""

Planned = tuple[dict[str, Indices], dict[str, Any]]
"""Group name -> units to keep, and a report with what was ``reached``."""


@dataclass(frozen=True)
class TimedPair:
    """Two models that were timed in turn.

    Attributes:
        before, after: seconds of the fastest run of each.
        spread: by how much the ratio of the two differed among the rounds, relative to its median.
    """

    before: float
    after: float
    spread: float

    @property
    def ratio(self) -> float:
        """The time of the second model, as a share of that of the first."""
        return self.after / self.before


def met(
    planned: Callable[[int], Planned],
    costs: Latency,
    amount: int,
    state: State,
    coupling: Coupling,
    *,
    tolerance: float,
) -> Planned:
    """A plan whose measured time is the one that was asked for.

    The prediction takes everything outside contractions to stay as it is, and times each contraction alone. Both are
    wrong by some percent; so the model that a plan leaves is timed, and the next plan's budget is read off the line
    through what was predicted and measured. A model whose weights are not in memory is not timed.

    Args:
        planned: makes a plan for a predicted time in nanoseconds.
        costs: predicts.
        amount: the time that is asked for, in nanoseconds.
        state: before the cut; it stays as it is.
        coupling: the analysis of its graph.
        tolerance: what the user allows. A miss above LARGEST_MISS is a warning up to this; beyond both it is an error.

    Returns:
        The plan; ``seconds`` in its report has what was measured, and remarks on it.

    Raises:
        FxpruneError: the time is missed.
        RequestError: as ``planned`` does for the first plan.
    """
    plan = planned(amount)
    if costs.seconds is None:
        return _reported(plan, {"before": None, "after": None, "predicted": plan[1]["reached"] / 1e9})
    now = costs.of({})
    asked = amount / now
    tried = [(plan, _raced(state, coupling, plan[0]))]
    while abs(tried[-1][1].ratio / asked - 1) > LARGEST_MISS and len(tried) < PLANS:
        again = _corrected(planned, tried, now, amount)
        if again is None:
            break
        tried.append((again, _raced(state, coupling, again[0])))
    best = min(tried, key=lambda each: abs(each[1].ratio / asked - 1))
    plan, race = best[0], state.ranks.broadcast(best[1])
    remarks = _judged(race, asked, state.ranks.broadcast(len(tried)), tolerance)
    predicted = plan[1]["reached"] / 1e9 * race.before / costs.seconds
    seconds = {"before": race.before, "after": race.after, "predicted": predicted, "asked": asked}
    plan[1]["budget"] = amount
    return _reported(plan, {**seconds, "spread": race.spread, "plans": len(tried), "remarks": remarks})


def _judged(race: TimedPair, asked: float, plans: int, tolerance: float) -> list[str]:
    """Remarks on what was measured.

    Raises:
        FxpruneError: it is not what was asked for.
    """
    remarks = []
    missed = abs(race.ratio / asked - 1)
    noise = f"repeats of a timing differ by {race.spread:.0%} on this machine; time it when nothing else runs"
    if missed > LARGEST_MISS:
        remark = f"the pruned model takes {race.ratio:.3f} of the time, where {asked:.3f} was asked for"
        if tolerance == BUDGET_TOLERANCE or missed > tolerance:
            raise _miss(remark, plans, missed, noise if race.spread > LARGEST_MISS else "")
        remarks.append(remark)
    if race.spread > LARGEST_MISS:
        remarks.append(noise)
    return remarks


def _miss(remark: str, plans: int, missed: float, noise: str) -> FxpruneError:
    enough = f"tolerance={int(missed * 100) / 100 + 0.01:.2f} takes it as it is"
    return FxpruneError(
        f"latency: {remark}; {plans} plan{'s were' if plans > 1 else ' was'} tried{f'; {noise}' if noise else ''}",
        f"give another target, or allow more to be cut; {enough}; macs can be predicted exactly",
    )


def _reported(plan: Planned, seconds: dict[str, Any]) -> Planned:
    return plan[0], {**plan[1], "seconds": seconds}


def _corrected(
    planned: Callable[[int], Planned], tried: list[tuple[Planned, TimedPair]], now: int, amount: int
) -> Planned | None:
    """A plan for the predicted time at which the measured one should be met; None when it is no other plan."""
    points = sorted({(now, float(now)), *((plan[1]["reached"], race.ratio * now) for plan, race in tried)})
    predicted, measured = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    measured = np.maximum.accumulate(measured)
    below, above = (0, 1) if amount <= measured[0] else (len(points) - 2, len(points) - 1)
    for at in range(len(points) - 1):
        if measured[at] <= amount <= measured[at + 1]:
            below, above = at, at + 1
            break
    rise = measured[above] - measured[below]
    if rise <= 0:
        return None
    budget = predicted[below] + (amount - measured[below]) / rise * (predicted[above] - predicted[below])
    if not 1 <= budget < now:
        return None
    try:
        found = planned(round(float(budget)))
    except FxpruneError:  # no plan costs so little; what was found before is judged
        return None
    known = [plan[0] for plan, _ in tried]
    return None if any(_same(found[0], other) for other in known) else found


def _same(one: Mapping[str, Indices], other: Mapping[str, Indices]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _raced(state: State, coupling: Coupling, keep: Mapping[str, Indices]) -> TimedPair:
    """Time the model and a copy of it that is cut."""
    subject = state.subject
    copied = Subject(
        subject.graph, subject.runner.twin().model, coupling, subject.example, subject.outputs,
        observed=subject.observed, whole=subject.whole,
    )  # fmt: skip
    trial = replace(state, subject=copied, ledger=Ledger())
    cut_what_fits(trial, coupling, keep)
    rounds = [(forward_seconds(subject), forward_seconds(trial.subject)) for _ in range(ROUNDS)]
    times = [(before, after) for before, after in rounds if before is not None and after is not None]
    ratios = [after / before for before, after in times]
    before, after = (min(each) for each in zip(*times, strict=True))
    return TimedPair(before, after, (max(ratios) - min(ratios)) / median(ratios))
