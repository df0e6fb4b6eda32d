"""What a pruning pass does: score, select, plan, rewrite the graph, shrink the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir import FxpruneError, Indices, RequestError
from ..ir.groups import HEAD_KINDS, Group
from ..ir.options import options_of, write_value
from ..runtime.model.held_values import held_values
from .couple.coupling import Coupling, couple
from .data import Calibration, Scores
from .prune import Prune
from .score_cache import fingerprint
from .select.alignment import aligned, remarks_on_runtime
from .select.budget import Budget, narrowed
from .select.costs import dense_cost
from .select.latency import Latency
from .select.plain_budget import Plain
from .select.plain_counts import first_units, nearest_counts
from .select.remarks import remarks_on
from .select.scope import Scope, chosen_groups, counted_from_start
from .select.select import best_units, counts_for, removed_shares
from .select.target import ACTIVE, LATENCY, MEMORY_IN_USE, UNIFORM, Target
from .shrink.fitting import cut_what_fits
from .shrink.graph import make_plan, rewrite
from .shrink.met_latency import met
from .state import State

BUDGET_OPTIONS = frozenset({"ratio", "target", "by", "moves", "multiple_of", "runtime", "tolerance"})
"""Options that decide how much is removed and do not change the scores."""

TURN = "turn"
"""The pass that turns the values of heads."""

NEAREST = "nearest"
"""In the report of a pass: where the nearest counts were picked that a plain configuration can say."""


def prune(step: Prune, state: State) -> None:
    """Run a pruning pass on a state, in place."""
    coupling = state.subject.coupling
    assert coupling is not None, "the manager runs couple first"
    share = _share(step, state)
    scope = scope_of(step, share, coupling, state)
    chosen, frozen = chosen_groups(coupling.groups.values(), scope)
    groups = aligned(chosen, step.runtime, share)
    report: dict[str, Any] = {"groups": len(groups), "frozen": {g.name: g.frozen for g in frozen}}
    if step.target is None and step.by == UNIFORM:
        wanted = counts_for(groups, step.ratio, step.width_multiple)
        counts, moved = _plain(step, groups, state)(wanted)
        scores = scored(step, groups, state)
        keep = {group.name: best_units(group, scores[group.name], counts[group.name]) for group in groups}
    else:
        keep, allocation = allocated(step, groups, state, coupling)
        moved, report["allocation"] = allocation.pop(NEAREST), allocation
    if moved:
        report[NEAREST] = [one.to_json() for one in moved]
    state.ledger.report[step.name] = report
    keep = state.ranks.broadcast(keep)  # a latency is not the same on all ranks
    keep, left = cut_what_fits(state, coupling, keep)
    _nest(step, state, keep, report)
    report["removed"] = removed_shares(groups, keep)
    if step.target is None:
        report["asked"] = step.ratio
    remarks = remarks_on_runtime(chosen, groups, step.runtime)
    remarks += remarks_on(scope, coupling.groups.values(), groups, step.width_multiple)
    if left:
        report["left_whole"] = left
        remarks += _missed(step, report.get("allocation"), state)
    if remarks:
        report["remarks"] = remarks
    timed = report.get("allocation", {}).pop("seconds", None)
    if timed is not None:
        # Times are printed but not written to the artifact, which must be the same in every run.
        report["seconds"] = timed


def scope_of(step: Prune, share: float | None, coupling: Coupling, state: State) -> Scope:
    """Which groups a pass may cut; ``share`` is about how much of each."""
    return Scope(
        layers=counted_from_start(step.layers, coupling.groups.values()), heads=step.heads, widths=step.ffn,
        channels=step.channels, experts=step.experts, within=step.within, ordered=step.ordered, share=share,
        values=_turned(step, state), both=step.by != UNIFORM,  # one ratio of both would be a square of it
    )  # fmt: skip


def _turned(step: Prune, state: State) -> frozenset[str]:
    """The tensors of values that a pass may make narrower.

    Raises:
        RequestError: it may, and nothing turned them.
    """
    if not step.values:
        return frozenset()
    if not any(record.name == TURN for record in state.ledger.decisions) and TURN not in state.ledger.report:
        raise RequestError(
            f"{step.name}: values=true has no effect: the values of no head were turned", "put turn before this pass"
        )
    model = state.subject.model
    held = [(path, model.get_submodule(path)) for path in held_values(model)]
    return frozenset(f"{path}.{name}" for path, module in held for name, _ in module.named_parameters(recurse=False))


def _nest(step: Prune, state: State, keep: Mapping[str, Indices], report: dict[str, Any]) -> None:
    """Of several sizes of one model, remember what this one keeps, for the next smaller one."""
    sizes = state.data.sizes
    if sizes is None or step.target is None:
        return
    if sizes.larger:
        report["subset_of"] = sizes.larger
    sizes.choose(step.target, keep)


def _missed(step: Prune, allocation: dict[str, Any] | None, state: State) -> list[str]:
    """Where kinds were left whole, brings what is ``reached`` up to date; a remark where that misses the budget."""
    if allocation is None or allocation["measure"] == LATENCY:
        return []
    graph, measure = state.subject.graph, allocation["measure"]
    if measure in (MEMORY_IN_USE, ACTIVE):
        reached = budget_of(step, {}).costs(state, couple(graph), []).whole(graph)
    else:
        reached = dense_cost(graph, measure)
    budget, allocation["reached"] = allocation["budget"], reached
    if abs(reached - budget) <= step.tolerance * budget:
        return []
    return [f"the budget of {budget:,} is missed: {allocation['measure']} are {reached:,}"]


def _plain(step: Prune, groups: Sequence[Group], state: State) -> Plain:
    """Finds the counts, or where the result must have a plain configuration, the nearest ones that one can say,
    and what was changed."""
    why_not, coupling = state.host.why_not_plain, state.subject.coupling
    if why_not is None or coupling is None:
        return lambda counts: (dict(counts), [])

    def refused(tried: Mapping[str, int]) -> str:
        plan = make_plan(coupling, first_units(groups, tried))
        return why_not(plan, rewrite(coupling, plan))

    steps = {group.name: step.step(group) for group in groups}
    fewer = narrowed(groups, _most(state))
    others = {group.size for group in coupling.groups.values() if group.kind in HEAD_KINDS}
    return lambda counts: nearest_counts(fewer, counts, steps, sorted(others), refused)


def allocated(
    step: Prune, groups: Sequence[Group], state: State, coupling: Coupling
) -> tuple[dict[str, Indices], dict[str, Any]]:
    """The best units of every group; the budget decides how many."""
    saved, sizes = state.ledger.scores, state.data.sizes
    if saved is None or saved.done:
        saved = None if sizes is None else sizes.measured
    scores = scored(step, groups, state)
    budget = budget_of(step, _most(state))
    costs = budget.costs(state, coupling, groups)
    losses = step.in_one_unit({g.name: step.losses(g, scores[g.name]) for g in groups}, groups, costs)
    amount = budget.amount(state, groups, costs)

    def planned(amount: int) -> tuple[dict[str, Indices], dict[str, Any]]:
        counts, moved, report = budget.widths(
            state, coupling, groups, scores, losses, costs=costs, amount=amount,
            plain=_plain(step, groups, state), saved=saved,
        )  # fmt: skip
        keep = {group.name: best_units(group, scores[group.name], counts[group.name]) for group in groups}
        return keep, {**report, NEAREST: moved}

    if isinstance(costs, Latency):
        return met(planned, costs, amount, state, coupling, tolerance=step.tolerance)
    return planned(amount)


def budget_of(step: Prune, most: Mapping[str, int]) -> Budget:
    """The budget that the options of a pass describe; ``most`` as in :class:`Budget`."""
    return Budget(
        target=None if step.target is None else Target.parse(step.target), by=step.by, ratio=step.ratio,
        multiple_of=step.width_multiple, moves=step.moves, tolerance=step.tolerance, most=most, **_sampling(step),
    )  # fmt: skip


def _most(state: State) -> dict[str, int]:
    """The most units that every group may keep, where a larger size of the model was chosen before."""
    sizes, coupling = state.data.sizes, state.subject.coupling
    return {} if sizes is None or coupling is None else sizes.most(coupling.groups)


def scored(step: Prune, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    """The scores; for the first pruning pass, the score file of ``--scores`` is used if there is one. Of several sizes,
    the largest is scored."""
    sizes = state.data.sizes
    if sizes is not None:
        sizes.scores = sizes.scores or _scored_anew(step, groups, state)
        return _valid(step, groups, sizes.scores)
    return _scored_anew(step, groups, state)


def _scored_anew(step: Prune, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    saved = state.ledger.scores
    if saved is None or saved.done:
        return _valid(step, groups, step.scores(groups, state))

    def compute(text: Calibration | None) -> Mapping[str, Scores]:
        found = step.scores(groups, replace(state, data=replace(state.data, calibration=text)))
        return _valid(step, groups, found)

    record = {"pass": step.name, "options": _scoring_options(step), "model": fingerprint(state.subject.runner)}
    found = saved.scores(record, state.data.calibration, [group.name for group in groups], compute)
    return _valid(step, groups, found, saved.name if saved.loaded else "")


def _valid(step: Prune, groups: Sequence[Group], scores: Mapping[str, Scores], file: str = "") -> Mapping[str, Scores]:
    """The scores, when every group has one number for each of its units: they may come from a package of others, or
    from a ``file``."""
    giver = f"--scores {file}" if file else f"pass {step.name!r}"
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


def _share(step: Prune, state: State) -> float | None:
    """About how much of every group is to be removed; None where the target is an amount. Of several sizes, the share
    of the largest, so that all of them cut the same kinds of heads."""
    if step.target is None:
        return step.ratio
    value = Target.parse(step.target).value
    share, sizes = 1 - value if value < 1 else None, state.data.sizes
    if sizes is None:
        return share
    if not sizes.larger:
        sizes.share = share
    return sizes.share


def _scoring_options(step: Prune) -> dict[str, str]:
    """The options that scores depend on, as text."""
    names = [o.name for o in options_of(type(step)) if step.for_one_budget or o.name not in BUDGET_OPTIONS]
    return {name: write_value(getattr(step, name)) for name in names}


def _sampling(step: Prune) -> dict[str, Any]:
    """Options for the calibration windows of a search: those of the scores, or ten windows."""
    default = {"samples": 10, "length": 128, "seed": None, "batch": 8}
    return {name: getattr(step, name, value) for name, value in default.items()}
