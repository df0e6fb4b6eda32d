"""The base of all pruning passes: score, select, plan, rewrite the graph, shrink the module."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..ir import FxpruneError, Indices, Plan, RequestError
from ..ir.graph import Graph
from ..ir.groups import Group
from ..ir.repairs import Repairs
from .allocate import UNIFORM, WAYS, Target
from .base import Pass, State, option
from .budget import Budget
from .consumers import taking_in
from .couple import Coupling
from .latency import forward_seconds
from .rehearsal import tensors_by_name
from .select import HEADS, Scope, Scores, best_units, chosen_groups, select, step_of
from .shrink import extents_by_module, make_plan, rewrite
from .surgery import shrink_module, sliced

SAME = 1e-4
"""Largest relative difference between the logits of the shrunken module and of the rewritten graph. Float32 rounding
errors are far smaller, the errors of a wrong repair far larger."""


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """A pass that scores units and removes those with the lowest scores."""

    kind: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)

    ratio: float = option(0.25, "share of the units of every group to remove, in [0, 1)")
    layers: tuple[int, int] | None = option(None, "layers to prune, START:END, END exclusive; none means all layers")
    heads: str = option("kv", "kv: kv heads with their query heads; query: query heads of each kv head; off", HEADS)
    ffn: bool = option(True, "prune inner widths, such as those of feed-forward layers")
    channels: bool = option(False, "prune the residual width (the paper's channel-wise mode)")
    experts: bool = option(False, "prune whole experts with their router rows; keep at least as many as a token needs")
    multiple_of: int = option(1, "round widths other than heads up to a multiple of this")
    target: str | None = option(
        None,
        "budget for the whole model instead of ratio: params:0.8, bytes:0.8, macs:0.8, latency:0.8, params:5e9",
    )
    by: str = option(
        "uniform", "uniform: one ratio for all; kinds: equal widths in all layers, scores weigh heads against widths; "
        "global: any widths, by scores; search: any widths, by measured effects on the predictions", WAYS
    )  # fmt: skip
    moves: int = option(64, "by=search: number of exchanges between groups to try")

    def check(self) -> None:
        """Check ratio, multiple_of, target and moves, and that something may be pruned."""
        if not 0 <= self.ratio < 1:
            raise RequestError(
                f"ratio {self.ratio:g} is not in [0, 1)", "give the share to remove: 0.25 removes a quarter"
            )
        if self.multiple_of < 1:
            raise RequestError(
                f"multiple_of {self.multiple_of} is not positive", "use 1 for no constraint, or 8, 64, ..."
            )
        if self.heads == "off" and not (self.ffn or self.channels or self.experts):
            raise RequestError(
                "heads=off, ffn=false, channels=false, experts=false leave nothing to prune", "turn one of them on"
            )

        if self.target is not None:
            Target.parse(self.target)
        if self.moves < 0:
            raise RequestError(f"moves {self.moves} is negative", "use 0 for none, or 64")

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
        coupling = state.coupling
        assert coupling is not None, "the manager runs couple first"
        scope = Scope(self.layers, self.heads, self.ffn, self.channels, self.experts)
        groups, frozen = chosen_groups(coupling.groups.values(), scope)
        report: dict[str, Any] = {"groups": len(groups), "frozen": {g.name: g.frozen for g in frozen}}
        if self.target is None and self.by == UNIFORM:
            keep = select(groups, self._scored(groups, state), self.ratio, self.multiple_of)
        else:
            keep, report["allocation"] = self._allocated(groups, state, coupling)
        state.report[self.name] = report
        cut(state, coupling, keep)
        timed = report.get("allocation", {}).pop("seconds", None)
        if timed is not None:
            # Times are printed but not written to the artifact, which must be the same in every run.
            report["seconds"] = timed | {"after": forward_seconds(state)}

    def _allocated(
        self, groups: Sequence[Group], state: State, coupling: Coupling
    ) -> tuple[dict[str, Indices], dict[str, object]]:
        """The best units of every group; the budget decides how many."""
        saved = state.saved if state.saved is not None and not state.saved.done else None
        scores = self._scored(groups, state)
        losses = {group.name: self.losses(group, scores[group.name]) for group in groups}
        budget = Budget(
            target=None if self.target is None else Target.parse(self.target), by=self.by, ratio=self.ratio,
            multiple_of=self.multiple_of, moves=self.moves, **self._sampling(),
        )  # fmt: skip
        counts, report = budget.widths(state, coupling, groups, scores, losses, alike=self.compares, saved=saved)
        return {g.name: best_units(g, scores[g.name], counts[g.name]) for g in groups}, report

    def _scored(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """The scores; for the first pruning pass, the score file of ``--scores`` is used if there is one."""
        saved = state.saved
        if saved is None or saved.done:
            return self.scores(groups, state)
        names = [group.name for group in groups]
        return saved.scores(self, state, names, self.for_one_budget, lambda: self.scores(groups, state))

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


def cut(state: State, coupling: Coupling, keep: Mapping[str, Indices]) -> None:
    """Apply a decision: rewrite the graph, shrink the module, combine the plan with that of earlier passes."""
    plan = make_plan(coupling, keep)
    before, after = state.graph, rewrite(coupling, plan)
    if not plan.removes_nothing:
        _shrink(state, plan, before, after)
    state.consumers += consumers_of(coupling, plan)
    state.graph = after
    state.plan = plan if state.plan is None else join_plans(state.plan, plan, coupling)


def _shrink(state: State, plan: Plan, before: Graph, after: Graph) -> None:
    """Shrink the module in place; if its own forward does not work at the new widths, rebuild it when possible."""
    whole = tensors_by_name(state.model) if state.rebuild is not None else {}
    try:
        repairs = shrink_module(
            state.model, plan, extents_by_module(before, after), state.example,
            outputs=state.outputs, accept=_acceptance(state, after),
        )  # fmt: skip
    except FxpruneError as stuck:
        if state.rebuild is None:
            raise
        state.model = state.rebuild(after, sliced(whole, plan), stuck.message)
        state.repairs = Repairs()
    else:
        state.repairs = join_repairs(state.repairs, repairs)


def consumers_of(coupling: Coupling, plan: Plan) -> list[tuple[str, int]]:
    """(tensor, dimension) of every weight that reads, or may read, units of a group that the plan cuts."""
    members = [m for name in plan.keep for m in taking_in(coupling.groups[name], coupling.graph)]
    return list(dict.fromkeys((m.tensor, m.dim) for m in members))


def _acceptance(state: State, after: Any) -> Any:
    execute = state.execute
    if execute is None:
        return None

    def accept() -> bool:
        expected, got = execute(after, state.model)
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        return expected.shape == got.shape and float((expected - got).abs().max() / scale) <= SAME

    return accept


def join_plans(first: Plan, second: Plan, coupling: Coupling) -> Plan:
    """Combine two plans that ran one after the other into one plan on the dense model.

    Args:
        first: plan on the dense model.
        second: plan on the result of the first.
        coupling: analysis of the result of the first.
    """
    slices = dict(first.slices)
    for key, kept in second.slices.items():
        slices[key] = slices[key][kept] if key in slices else kept
    keep = dict(first.keep)
    for name, kept in second.keep.items():
        # Units that the first plan keeps stay in order, so the second plan's unit numbers are positions in that list.
        keep[name] = keep[name][kept] if name in keep and len(keep[name]) == coupling.groups[name].units else kept
    return Plan(keep, slices)


def join_repairs(first: Repairs, second: Repairs) -> Repairs:
    """Combine two sets of repairs, made one after the other, into one on the dense model."""
    joined = {path: dict(changes) for path, changes in first.attributes.items()}
    for path, changes in second.attributes.items():
        known = joined.setdefault(path, {})
        for name, (old, new) in changes.items():
            known[name] = (known[name][0] if name in known else old, new)
    return Repairs(joined)


def random_scores(groups: Sequence[Group], seed: int) -> dict[str, Scores]:
    """Uniform random scores, from one random generator for all groups in order."""
    generator = np.random.default_rng(seed)
    return {group.name: generator.random(group.units) for group in groups}
