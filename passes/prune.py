"""The base of all pruning passes: score, select, plan, rewrite the graph, shrink the module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import FxpruneError, Indices, RequestError
from ..ir.groups import Group, Kind
from ..ir.options import option, options_of, write_value
from .base import Pass, PassKind
from .couple.coupling import Coupling, couple
from .data import Calibration, Scores
from .score_cache import fingerprint
from .select.allocate import BUDGET_TOLERANCE, UNIFORM, WAYS
from .select.budget import Budget, narrowed
from .select.costs import ACTIVE, LATENCY, MEMORY_IN_USE, dense_cost
from .select.latency import Latency
from .select.plain_budget import Plain
from .select.plain_counts import first_units, nearest_counts
from .select.remarks import remarks_on
from .select.scope import HEAD_CHOICES, Scope, chosen_groups
from .select.select import best_units, counts_for, removed_shares, step_of
from .select.target import Target
from .shrink.fitting import cut_what_fits
from .shrink.graph import make_plan, rewrite
from .shrink.met_latency import met
from .state import State

BUDGET_OPTIONS = frozenset({"ratio", "target", "by", "moves", "multiple_of", "tolerance"})
"""Options that decide how much is removed and do not change the scores."""

NEAREST = "nearest"
"""In the report of a pass: where the nearest counts were picked that a plain configuration can say."""

ATTENTION_UNITS = frozenset({Kind.HEADS, Kind.KV_HEADS, Kind.QUERY_HEADS})


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """A pass that scores units and removes those with the lowest scores."""

    kind: ClassVar[PassKind] = PassKind.SCORE
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    keeps_values: ClassVar[bool] = True

    ratio: float = option(
        0.25, "share of the units of every group to remove, in [0, 1)", at_least=0, below=1,
        hint="give the share to remove: 0.25 removes a quarter",
    )  # fmt: skip
    layers: tuple[int, int] | None = option(None, "layers to prune, START:END, END exclusive; none means all layers")
    within: str | None = option(
        None, "a part of the model, such as language_model: prune only what lies wholly in modules of this name"
    )
    heads: str = option(
        "auto",
        "kv: kv heads with their query heads; query: query heads of each kv head; off; auto: kv, or query "
        "in layers with so few kv heads that none would go",
        HEAD_CHOICES,
    )
    ffn: bool = option(True, "prune inner widths, such as those of feed-forward layers")
    channels: bool = option(
        False, "prune the residual width (the paper's channel-wise mode); true for package.module:callable"
    )
    experts: bool = option(False, "prune whole experts with their router rows; keep at least as many as a token needs")
    ordered: bool = option(
        False, "prune units that carry a value by their index too, such as the bins of a distribution"
    )
    multiple_of: int = option(
        1, "round widths other than heads up to a multiple of this", at_least=1,
        hint="use 1 for no constraint, or 8, 64, ...",
    )  # fmt: skip
    target: str | None = option(
        None,
        "budget for the whole model instead of ratio: params:0.8, params:5e9, bytes:0.8, macs:0.8, latency:0.8, "
        "active:0.8 of a mixture's parameters, memory:6GB@8192x4 with the cache of 4 sequences of 8192 tokens",
        replaces="ratio",
    )
    tolerance: float = option(
        BUDGET_TOLERANCE, "largest relative difference between the budget and what is reached", at_least=0, below=1,
        hint="give a share of the budget: 0.03 allows 3 percent more or less",
    )  # fmt: skip
    by: str = option(
        "uniform", "uniform: one ratio for all; kinds: equal widths in all layers, scores weigh heads against widths; "
        "global: any widths, by scores; search: any widths, by measured effects on the predictions", WAYS
    )  # fmt: skip
    moves: int = option(
        64, "by=search: number of exchanges between groups to try", only_with=("by", "search"), at_least=0
    )

    def check(self) -> None:
        """Also refuse a target that cannot be read, and a scope that holds nothing."""
        super().check()
        if self.heads == "off" and not (self.ffn or self.channels or self.experts):
            raise RequestError(
                "heads=off, ffn=false, channels=false, experts=false leave nothing to prune", "turn one of them on"
            )
        if self.target is not None:
            Target.parse(self.target)
        elif self.by == UNIFORM and self.tolerance != BUDGET_TOLERANCE:
            raise RequestError(
                f"tolerance={self.tolerance:g} has no effect: there is no budget to meet", "give a target too"
            )

    @property
    def loads_model(self) -> bool:
        """Also where the model is timed."""
        return super().loads_model or (self.target is not None and Target.parse(self.target).measure == LATENCY)

    def step(self, group: Group) -> int:
        """The number of units that a group keeps is a multiple of this."""
        return step_of(group, self.multiple_of)

    @abstractmethod
    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """The importance of every unit of every group: name -> float64 ``[group.units]``."""

    def losses(self, group: Group, scores: Scores) -> Scores:
        """Summed scores of the 0, 1, ... lowest-scored units of every parent unit: float64 ``[size + 1]``."""
        rows = np.sort(scores.reshape(-1, group.size), axis=1)
        return np.concatenate([np.zeros(1), rows.sum(0).cumsum()])

    def run(self, state: State) -> None:
        """Score, select, rewrite the graph and shrink the module in place."""
        coupling = state.subject.coupling
        assert coupling is not None, "the manager runs couple first"
        scope = Scope(
            layers=self.layers, heads=self.heads, widths=self.ffn, channels=self.channels, experts=self.experts,
            within=self.within, ordered=self.ordered, share=self._share(state),
        )  # fmt: skip
        groups, frozen = chosen_groups(coupling.groups.values(), scope)
        report: dict[str, Any] = {"groups": len(groups), "frozen": {g.name: g.frozen for g in frozen}}
        if self.target is None and self.by == UNIFORM:
            wanted = counts_for(groups, self.ratio, self.multiple_of)
            counts, moved = self._plain(groups, state)(wanted)
            scores = self._scored(groups, state)
            keep = {group.name: best_units(group, scores[group.name], counts[group.name]) for group in groups}
        else:
            keep, allocation = self._allocated(groups, state, coupling)
            moved, report["allocation"] = allocation.pop(NEAREST), allocation
        if moved:
            report[NEAREST] = [one.to_json() for one in moved]
        state.ledger.report[self.name] = report
        keep = state.ranks.broadcast(keep)  # a latency is not the same on all ranks
        keep, left = cut_what_fits(state, coupling, keep)
        self._nest(state, keep, report)
        report["removed"] = removed_shares(groups, keep)
        if self.target is None:
            report["asked"] = self.ratio
        remarks = remarks_on(scope, coupling.groups.values(), groups, self.multiple_of)
        if left:
            report["left_whole"] = left
            remarks += self._missed(report.get("allocation"), state)
        if remarks:
            report["remarks"] = remarks
        timed = report.get("allocation", {}).pop("seconds", None)
        if timed is not None:
            # Times are printed but not written to the artifact, which must be the same in every run.
            report["seconds"] = timed

    def _nest(self, state: State, keep: Mapping[str, Indices], report: dict[str, Any]) -> None:
        """Of several sizes of one model, remember what this one keeps, for the next smaller one."""
        sizes = state.data.sizes
        if sizes is None or self.target is None:
            return
        if sizes.larger:
            report["subset_of"] = sizes.larger
        sizes.choose(self.target, keep)

    def _missed(self, allocation: dict[str, Any] | None, state: State) -> list[str]:
        """Where kinds were left whole, brings what is ``reached`` up to date; a remark where that misses the budget."""
        if allocation is None or allocation["measure"] == LATENCY:
            return []
        graph, measure = state.subject.graph, allocation["measure"]
        if measure in (MEMORY_IN_USE, ACTIVE):
            reached = self._budget({}).costs(state, couple(graph), []).whole(graph)
        else:
            reached = dense_cost(graph, measure)
        budget, allocation["reached"] = allocation["budget"], reached
        if abs(reached - budget) <= self.tolerance * budget:
            return []
        return [f"the budget of {budget:,} is missed: {allocation['measure']} are {reached:,}"]

    def _share(self, state: State) -> float | None:
        """About how much of every group is to be removed; None where the target is an amount. Of several sizes, the
        share of the largest, so that all of them cut the same kinds of heads."""
        if self.target is None:
            return self.ratio
        value = Target.parse(self.target).value
        share, sizes = 1 - value if value < 1 else None, state.data.sizes
        if sizes is None:
            return share
        if not sizes.larger:
            sizes.share = share
        return sizes.share

    def _plain(self, groups: Sequence[Group], state: State) -> Plain:
        """Finds the counts, or where the result must have a plain configuration, the nearest ones that one can say,
        and what was changed."""
        why_not, coupling = state.host.why_not_plain, state.subject.coupling
        if why_not is None or coupling is None:
            return lambda counts: (dict(counts), [])

        def refused(tried: Mapping[str, int]) -> str:
            plan = make_plan(coupling, first_units(groups, tried))
            return why_not(plan, rewrite(coupling, plan))

        steps = {group.name: self.step(group) for group in groups}
        fewer = narrowed(groups, _most(state))
        others = {group.size for group in coupling.groups.values() if group.kind in ATTENTION_UNITS}
        return lambda counts: nearest_counts(fewer, counts, steps, sorted(others), refused)

    def _allocated(
        self, groups: Sequence[Group], state: State, coupling: Coupling
    ) -> tuple[dict[str, Indices], dict[str, Any]]:
        """The best units of every group; the budget decides how many."""
        saved, sizes = state.ledger.scores, state.data.sizes
        if saved is None or saved.done:
            saved = None if sizes is None else sizes.measured
        scores = self._scored(groups, state)
        losses = {group.name: self.losses(group, scores[group.name]) for group in groups}
        budget = self._budget(_most(state))
        costs = budget.costs(state, coupling, groups)
        amount = budget.amount(state, groups, costs)

        def planned(amount: int) -> tuple[dict[str, Indices], dict[str, Any]]:
            counts, moved, report = budget.widths(
                state, coupling, groups, scores, losses, costs=costs, amount=amount,
                alike=self.compares, plain=self._plain(groups, state), saved=saved,
            )  # fmt: skip
            keep = {group.name: best_units(group, scores[group.name], counts[group.name]) for group in groups}
            return keep, {**report, NEAREST: moved}

        if isinstance(costs, Latency):
            return met(planned, costs, amount, state, coupling, tolerance=self.tolerance)
        return planned(amount)

    def _budget(self, most: Mapping[str, int]) -> Budget:
        return Budget(
            target=None if self.target is None else Target.parse(self.target), by=self.by, ratio=self.ratio,
            multiple_of=self.multiple_of, moves=self.moves, tolerance=self.tolerance, most=most, **self._sampling(),
        )  # fmt: skip

    def _scored(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """The scores; for the first pruning pass, the score file of ``--scores`` is used if there is one. Of several
        sizes, the largest is scored."""
        sizes = state.data.sizes
        if sizes is not None:
            sizes.scores = sizes.scores or self._scored_anew(groups, state)
            return self._valid(groups, sizes.scores)
        return self._scored_anew(groups, state)

    def _scored_anew(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        saved = state.ledger.scores
        if saved is None or saved.done:
            return self._valid(groups, self.scores(groups, state))

        def compute(text: Calibration | None) -> Mapping[str, Scores]:
            found = self.scores(groups, replace(state, data=replace(state.data, calibration=text)))
            return self._valid(groups, found)

        record = {"pass": self.name, "options": self._scoring_options(), "model": fingerprint(state.subject.runner)}
        found = saved.scores(record, state.data.calibration, [group.name for group in groups], compute)
        return self._valid(groups, found, saved.name if saved.loaded else "")

    def _valid(self, groups: Sequence[Group], scores: Mapping[str, Scores], file: str = "") -> Mapping[str, Scores]:
        """The scores, when every group has one number for each of its units: they may come from a package of others, or
        from a ``file``."""
        giver = f"--scores {file}" if file else f"pass {self.name!r}"
        if not isinstance(scores, Mapping):
            raise FxpruneError(
                f"{giver} gave a {type(scores).__name__} as scores",
                "scores() returns a dict: group name -> array",
            )
        for group in groups:
            found = scores.get(group.name)
            if not isinstance(found, np.ndarray) or found.shape != (group.units,):
                got = f"shape {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
                raise FxpruneError(
                    f"{giver} gave no scores of {group.name} that fit: {got}, not [{group.units}]",
                    "scores() returns a NumPy array with one number for each unit of every group",
                )
            if np.isnan(found).any():
                raise FxpruneError(
                    f"{giver} gave scores of {group.name} that are not numbers",
                    "look for a division by zero or an overflow in the pass",
                )
        return scores

    def _scoring_options(self) -> dict[str, str]:
        """The options that scores depend on, as text."""
        names = [o.name for o in options_of(type(self)) if self.for_one_budget or o.name not in BUDGET_OPTIONS]
        return {name: write_value(getattr(self, name)) for name in names}

    @property
    def for_one_budget(self) -> bool:
        """Whether scores depend on the budget, so that they cannot be used for another budget."""
        return False

    @property
    def compares(self) -> bool:
        """Whether scores of different groups have the same unit; if not, they are scaled by the cost of their group."""
        return False

    def _sampling(self) -> dict[str, Any]:
        """Options for the calibration windows of a search: those of the scores, or ten windows."""
        default = {"samples": 10, "length": 128, "seed": None, "batch": 8}
        return {name: getattr(self, name, value) for name, value in default.items()}


def _most(state: State) -> dict[str, int]:
    """The most units that every group may keep, where a larger size of the model was chosen before."""
    sizes, coupling = state.data.sizes, state.subject.coupling
    return {} if sizes is None or coupling is None else sizes.most(coupling.groups)
