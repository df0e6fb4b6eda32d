"""The base of all pruning passes: score, select, plan, rewrite the graph, shrink the module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ..ir import FxpruneError, Indices, RequestError
from ..ir.groups import Group
from ..ir.options import option, options_of, write_value
from .base import Pass, PassKind
from .couple.coupling import Coupling
from .data import Calibration, Scores
from .score_cache import fingerprint
from .select.allocate import BUDGET_TOLERANCE, UNIFORM, WAYS, Target
from .select.budget import Budget
from .select.costs import LATENCY, dense_cost
from .select.latency import forward_seconds
from .select.plain_budget import Plain
from .select.plain_counts import first_units, nearest_counts
from .select.remarks import remarks_on
from .select.runtimes import AS_NEEDED, ATTENTION_UNITS, DEFAULT_MULTIPLE, RUNTIMES, aligned, remarks_on_runtime
from .select.scope import HEAD_CHOICES, Scope, chosen_groups
from .select.select import best_units, counts_for, removed_shares, step_of
from .shrink.fitting import cut_what_fits
from .shrink.graph import make_plan, rewrite
from .state import State

BUDGET_OPTIONS = frozenset({"ratio", "target", "by", "moves", "multiple_of", "runtime", "tolerance"})
"""Options that decide how much is removed and do not change the scores."""

NEAREST = "nearest"
"""In the report of a pass: where the nearest counts were picked that a plain configuration can say."""


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
    multiple_of: int | Literal["auto"] = option(
        1, "round widths other than heads up to a multiple of this; auto: what runtime needs, or 32", at_least=1,
        hint="use 1 for no constraint, or 8, 64, ...",
    )  # fmt: skip
    runtime: str | None = option(
        None, "what the result is for: widths, heads and experts are kept in the counts that its kernels need",
        tuple(RUNTIMES),
    )  # fmt: skip
    target: str | None = option(
        None,
        "budget for the whole model instead of ratio: params:0.8, bytes:0.8, macs:0.8, latency:0.8, params:5e9",
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
        needed = 1 if self.runtime is None else RUNTIMES[self.runtime].columns
        if isinstance(self.multiple_of, int) and self.multiple_of > 1 and self.multiple_of % needed:
            raise RequestError(
                f"multiple_of={self.multiple_of} is no multiple of {needed}, which runtime={self.runtime} needs",
                f"leave one of the two out, or give multiple_of={needed}",
            )
        if self.target is not None:
            Target.parse(self.target)
        elif self.by == UNIFORM and self.tolerance != BUDGET_TOLERANCE:
            raise RequestError(
                f"tolerance={self.tolerance:g} has no effect: there is no budget to meet", "give a target too"
            )

    def step(self, group: Group) -> int:
        """The number of units that a group keeps is a multiple of this."""
        return step_of(group, self.width_multiple)

    @property
    def width_multiple(self) -> int:
        """What widths other than heads are multiples of."""
        if self.runtime is not None and self.multiple_of in (1, AS_NEEDED):
            return RUNTIMES[self.runtime].columns
        return self.multiple_of if isinstance(self.multiple_of, int) else DEFAULT_MULTIPLE

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
            within=self.within, ordered=self.ordered, share=self._share,
        )  # fmt: skip
        chosen, frozen = chosen_groups(coupling.groups.values(), scope)
        groups = aligned(chosen, self.runtime, self._share)
        report: dict[str, Any] = {"groups": len(groups), "frozen": {g.name: g.frozen for g in frozen}}
        if self.target is None and self.by == UNIFORM:
            wanted = counts_for(groups, self.ratio, self.width_multiple)
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
        report["removed"] = removed_shares(groups, keep)
        if self.target is None:
            report["asked"] = self.ratio
        remarks = remarks_on_runtime(chosen, groups, self.runtime)
        remarks += remarks_on(scope, coupling.groups.values(), groups, self.width_multiple)
        if left:
            report["left_whole"] = left
            remarks += self._missed(report.get("allocation"), state)
        if remarks:
            report["remarks"] = remarks
        timed = report.get("allocation", {}).pop("seconds", None)
        if timed is not None:
            # Times are printed but not written to the artifact, which must be the same in every run.
            report["seconds"] = timed | {"after": forward_seconds(state.subject)}

    def _missed(self, allocation: dict[str, Any] | None, state: State) -> list[str]:
        """Where kinds were left whole, brings what is ``reached`` up to date; a remark where that misses the budget."""
        if allocation is None or allocation["measure"] == LATENCY:
            return []
        reached = allocation["reached"] = dense_cost(state.subject.graph, allocation["measure"])
        budget = allocation["budget"]
        if abs(reached - budget) <= self.tolerance * budget:
            return []
        return [f"the budget of {budget:,} is missed: {allocation['measure']} are {reached:,}"]

    @property
    def _share(self) -> float | None:
        """About how much of every group is to be removed; None where the target is an amount."""
        if self.target is None:
            return self.ratio
        value = Target.parse(self.target).value
        return 1 - value if value < 1 else None

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
        others = {group.size for group in coupling.groups.values() if group.kind in ATTENTION_UNITS}
        return lambda counts: nearest_counts(groups, counts, steps, sorted(others), refused)

    def _allocated(
        self, groups: Sequence[Group], state: State, coupling: Coupling
    ) -> tuple[dict[str, Indices], dict[str, Any]]:
        """The best units of every group; the budget decides how many."""
        saved = state.ledger.scores
        saved = saved if saved is not None and not saved.done else None
        scores = self._scored(groups, state)
        losses = {group.name: self.losses(group, scores[group.name]) for group in groups}
        budget = Budget(
            target=None if self.target is None else Target.parse(self.target), by=self.by, ratio=self.ratio,
            multiple_of=self.width_multiple, moves=self.moves, tolerance=self.tolerance, **self._sampling(),
        )  # fmt: skip
        counts, moved, report = budget.widths(
            state, coupling, groups, scores, losses,
            alike=self.compares, plain=self._plain(groups, state), saved=saved,
        )  # fmt: skip
        keep = {group.name: best_units(group, scores[group.name], counts[group.name]) for group in groups}
        return keep, {**report, NEAREST: moved}

    def _scored(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """The scores; for the first pruning pass, the score file of ``--scores`` is used if there is one."""
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
