"""budget: from scores and a target, decide how many units every group keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...ir import RequestError
from ...ir.groups import Group
from ...runtime.place.memory import size_text
from ...runtime.reporting import counted
from ..couple.coupling import Coupling
from ..data import Scores
from ..score_cache import ScoreCache, reading_for
from ..state import State
from .active import Active
from .allocate import Amounts, LossCurve, Losses, allocate, even, levels, tied
from .costs import Costs
from .latency import Latency
from .memory import MemoryCosts
from .plain_budget import Plain, plain_within_budget
from .plain_counts import Moved
from .select import kept_count, step_of
from .sensitivity import DivergenceGauge, MeasuredAllocation, UnitMask
from .target import ACTIVE, LATENCY, MEMORY_IN_USE, SEARCH, UNIFORM, Target


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of a pruning pass, and how it is divided among groups.

    Attributes:
        target: what the model may cost; None for the parameters that are left when every group loses ``ratio``.
        by: ``uniform``, ``kinds``, ``global`` or ``search``.
        ratio: used when there is no target.
        multiple_of: widths are multiples of this.
        moves: how many exchanges between groups a search tries.
        tolerance: largest relative difference between the budget and what is reached.
        most: group name -> the most units that it may keep, per parent unit; all of them where it is not named.
        samples, length, seed, batch: the calibration windows for the measurements of a search.
    """

    target: Target | None
    by: str
    ratio: float
    multiple_of: int
    moves: int
    tolerance: float
    samples: int
    length: int
    seed: int | None
    batch: int
    most: Mapping[str, int] = field(default_factory=dict)

    def costs(self, state: State, coupling: Coupling, groups: Sequence[Group]) -> Costs:
        """What the model costs at other widths, in the measure of the target."""
        measure = self.target.measure if self.target is not None else "params"
        names = [group.name for group in groups]
        if measure == LATENCY:
            return Latency(coupling, names, state.subject)
        if measure == ACTIVE:
            return Active(coupling, names)
        if measure == MEMORY_IN_USE and self.target is not None:
            return MemoryCosts(coupling, names, self.target, state)
        return Costs(coupling, names, measure)

    def amount(self, state: State, groups: Sequence[Group], costs: Costs) -> int:
        """The budget in the unit of its measure.

        Raises:
            RequestError: when the model already costs no more than the budget, or, of memory, cannot cost so little.
        """
        now = costs.of({})
        if self.target is None:
            return costs.of({g.name: self._at_ratio(g) for g in groups})
        assert state.before.graph is not None, "the manager keeps the first graph"
        amount = self.target.amount(costs.whole(state.before.graph))
        if amount >= now:
            raise RequestError(
                f"target {self.target} is {costs.shown(amount)}, and the model already has {costs.shown(now)}: nothing "
                "would be removed",
                "give a smaller target",
            )
        if isinstance(costs, MemoryCosts):
            self._check_memory(groups, costs, amount)
        return amount

    def _check_memory(self, groups: Sequence[Group], costs: MemoryCosts, amount: int) -> None:
        fewest = {g.name: int(levels(g.size, step_of(g, self.multiple_of), g.minimum)[0]) for g in groups}
        least, cache = costs.of(fewest), costs.cache(fewest)
        if amount < least * (1 - self.tolerance):
            parts = f"{size_text(least - cache)} of weights and {size_text(cache)} of key-value cache"
            raise RequestError(
                f"target {self.target} is {size_text(amount)}, and with the fewest units that each group can keep "
                f"{size_text(least)} are left: {parts}",
                "give more memory, a smaller context or batch; or allow more to be cut: channels=true, all layers, or "
                "drop before it",
            )

    def _windows(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("samples", "length", "seed", "batch")}

    def _at_ratio(self, group: Group) -> int:
        return kept_count(group.size, self.ratio, step_of(group, self.multiple_of), group.minimum)

    def widths(
        self,
        state: State,
        coupling: Coupling,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        losses: Mapping[str, Losses],
        *,
        costs: Costs,
        amount: int,
        plain: Plain,
        saved: ScoreCache | None = None,
    ) -> tuple[dict[str, int], list[Moved], dict[str, object]]:
        """How many units every group keeps, what a plain configuration changed in it, and what to report about it.

        Args:
            state: before the cut.
            coupling: the analysis of its graph.
            groups: the groups to cut.
            scores: scores of their units.
            losses: group name -> loss of quality when 0, 1, ... units of every parent unit go, ``[size + 1]``, in a
                unit that all groups share.
            costs: from :meth:`costs`.
            amount: what the model may cost.
            plain: the nearest counts that a plain configuration can say, where the result must have one.
            saved: stores what a search measures for single groups.

        Raises:
            RequestError: for a budget that no plan meets, or that removes nothing; as :class:`MeasuredAllocation` does.
        """
        curves = self.curves(groups, losses, costs)
        measure = self.target.measure if self.target is not None else "params"
        report: dict[str, object] = {"by": self.by, "budget": amount, "measure": measure}
        if self.by == SEARCH:
            search = self.measurements(state, coupling, groups, scores, saved)
            counts, moved = self._searched(search, groups, curves, costs, amount=amount, plain=plain)
            report["distance"] = search.distance(counts)
        else:
            counts, moved = plain_within_budget(
                narrowed(groups, self.most), [self._limited(curve) for curve in curves],
                lambda some: allocate(some, costs, amount, self.tolerance), plain,
            )  # fmt: skip
        if isinstance(costs, MemoryCosts) and self.target is not None and self.target.context:
            report |= {"target": str(self.target), "cache": costs.cache(counts)}
        return counts, moved, report | {"reached": costs.of(counts)}

    def measurements(
        self,
        state: State,
        coupling: Coupling,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        saved: ScoreCache | None,
        *,
        who: str = "by=search",
    ) -> MeasuredAllocation:
        """What measures the model with fewer units; arguments as in :meth:`widths`, ``who`` is named in errors.

        Raises:
            RequestError: as :class:`UnitMask` and :meth:`DivergenceGauge.of` do.
        """
        runner = state.subject.runner
        unit_mask = UnitMask(runner, coupling.graph, groups)
        with reading_for(saved, state.data.calibration) as calibration:
            data = replace(state.data, calibration=calibration)
            gauge = DivergenceGauge.of(runner, data, **self._windows(), keys=state.subject.outputs, who=who)
        return MeasuredAllocation(gauge, unit_mask, {group.name: group for group in groups}, scores, saved)

    def curves(self, groups: Sequence[Group], losses: Mapping[str, Losses], costs: Costs) -> list[LossCurve]:
        """The possible widths of all groups; groups that are to keep equally many units share a curve."""
        curves = [self._curve(group, losses[group.name], costs) for group in groups]
        if self.by in (UNIFORM, "kinds"):
            curves = tied(curves, [(group.kind, group.size) for group in groups])
        return even({group.name: group.size for group in groups}, curves) if self.by == UNIFORM else curves

    def _limited(self, curve: LossCurve) -> LossCurve:
        """The widths of a curve that its groups may keep."""
        most = min(self.most.get(name, int(curve.counts[-1])) for name in curve.groups)
        known = np.union1d(curve.counts[curve.counts <= most], [most]).astype(np.int64)
        losses, costs = (np.interp(known, curve.counts, found) for found in (curve.losses, curve.costs))
        return replace(curve, counts=known, losses=losses, costs=costs.round().astype(np.int64))

    def _curve(self, group: Group, losses: Losses, costs: Costs) -> LossCurve:
        counts: Amounts = levels(group.size, step_of(group, self.multiple_of), group.minimum)
        saved = np.array([costs.saved(group.name, int(count)) for count in counts], dtype=np.int64)
        return LossCurve((group.name,), counts, losses[group.size - counts], saved[0] - saved)

    def _searched(
        self,
        search: MeasuredAllocation,
        groups: Sequence[Group],
        curves: Sequence[LossCurve],
        costs: Costs,
        *,
        amount: int,
        plain: Plain,
    ) -> tuple[dict[str, int], list[Moved]]:
        """The better of two allocations, by scores and by measured curves, refined; and what ``plain`` changed."""
        measured = {curve.groups: self._limited(search.measured(curve)) for curve in counted(curves, "measured groups")}

        def choose(some: Sequence[LossCurve]) -> dict[str, int]:
            by_measure = [measured[curve.groups] if len(curve.counts) > 1 else curve for curve in some]
            start = min(
                (allocate(found, costs, amount, self.tolerance) for found in (some, by_measure)), key=search.distance
            )
            return search.refined(by_measure, costs, start, max(amount, costs.of(start)), moves=self.moves)

        return plain_within_budget(
            narrowed(groups, self.most), [self._limited(curve) for curve in curves], choose, plain
        )


def narrowed(groups: Sequence[Group], most: Mapping[str, int]) -> list[Group]:
    """The groups, as if those that may not keep all of their units had no more."""
    return [replace(group, size=most.get(group.name, group.size)) for group in groups]
