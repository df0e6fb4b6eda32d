"""What analyze does: score, measure the curve of every group, measure layers, find a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ...ir import RequestError
from ...ir.groups import HEAD_KINDS, Group
from ...runtime.reporting import counted
from ..couple.coupling import Coupling
from ..data import is_inputs
from ..model.answers import LOGITS
from ..pipeline import print_pass
from ..prune import HEAD_CHOICES, Prune
from ..pruning import budget_of, scope_of, scored
from ..select.alignment import aligned
from ..select.allocate import LossCurve
from ..select.costs import Costs
from ..select.scope import chosen_groups
from ..select.sensitivity import MeasuredAllocation, probed, why_not_masked
from ..state import State
from .analyze import Analyze
from .layers import measured_parts
from .recommendation import Trial, Tried

NATS = "nats per token"
DISTANCE = "distance of the outputs"
LOSS = "increase of the loss"

AS_FEW_ALLOW = HEAD_CHOICES[0]


def analyze(step: Analyze, state: State) -> None:
    """Run the pass on a state: only its report changes."""
    coupling = state.subject.coupling
    assert coupling is not None, "the manager runs couple first"
    prune = settled(step.step, coupling, state)
    chosen, frozen = chosen_groups(coupling.groups.values(), scope_of(prune, prune.ratio, coupling, state))
    groups, left = measurable(aligned(chosen, prune.runtime, prune.ratio))
    saved = None if state.ledger.scores is None or state.ledger.scores.done else state.ledger.scores
    scores = scored(prune, groups, state)
    budget = budget_of(prune, {})
    search = budget.measurements(state, coupling, groups, scores, saved, who=step.name)
    costs = Costs(coupling, [group.name for group in groups], step.measure)
    losses = prune.in_one_unit({g.name: prune.losses(g, scores[g.name]) for g in groups}, groups, costs)
    curves = [search.measured(curve) for curve in counted(budget.curves(groups, losses, costs), "measured groups")]
    assert state.before.graph is not None, "the manager keeps the first graph"
    trial = Trial(search, costs, curves, costs.whole(state.before.graph), step.bound, prune.tolerance)
    found = trial.recommended()
    state.ledger.report[step.name] = {
        "pass": print_pass(prune),
        "measure": step.measure,
        "whole": trial.whole,
        "unit": unit_of(state),
        "bound": step.bound,
        "groups": [_entry(g, c, search, found) for g, c in zip(groups, curves, strict=True)],
        "parts": measured_parts(step, state, search.divergence),
        "budgets": [one.to_json() for one in trial.tried()],
        "recommended": None if found is None else found.to_json(),
        "equal_widths": [] if found is None else trial.equal_widths(found.percent, search.groups),
        "not_measured": left,
        "frozen": {group.name: group.frozen for group in frozen},
    }


def unit_of(state: State) -> str:
    """What distances are measured in."""
    if state.data.losses:
        return LOSS
    inputs = is_inputs(state.data.calibration)
    return DISTANCE if inputs and LOGITS not in state.subject.outputs else "nats per row" if inputs else NATS


def settled(step: Prune, coupling: Coupling, state: State) -> Prune:
    """The pass with the heads that it cuts named, where one name says it: a budget found later cuts the same ones."""
    if step.heads != AS_FEW_ALLOW or not any(group.kind in HEAD_KINDS for group in coupling.groups.values()):
        return step
    mine = _names(step, coupling, state)
    others = (replace(step, heads=heads) for heads in ("kv", "query"))
    return next((other for other in others if _names(other, coupling, state) == mine), step)


def _names(step: Prune, coupling: Coupling, state: State) -> list[str]:
    try:
        chosen, _ = chosen_groups(coupling.groups.values(), scope_of(step, step.ratio, coupling, state))
        return [group.name for group in chosen]
    except RequestError:  # of a model that has none of these
        return []


def measurable(groups: Iterable[Group]) -> tuple[list[Group], dict[str, str]]:
    """The groups whose cuts can be measured, and why others cannot.

    Raises:
        RequestError: there is none.
    """
    known = [(group, why_not_masked(group)) for group in groups]
    left = {group.name: why for group, why in known if why is not None}
    found = [group for group, why in known if why is None]
    if not found:
        name, why = next(iter(left.items()))
        raise RequestError(
            f"analyze sets units to zero, which for {name} is not the same as removing them: {why}",
            "leave widths or heads in, as they are by default; `fxprune apply --ratio` cuts without measuring",
        )
    return found, left


def _entry(group: Group, curve: LossCurve, search: MeasuredAllocation, found: Tried | None) -> dict[str, Any]:
    """A group as JSON: at every count that was measured, the distance and what is saved."""
    at = probed(curve)
    return {
        "name": group.name,
        "kind": group.kind.value,
        "layer": group.layer,
        "units": group.size,
        "parents": group.units // group.size,
        "counts": curve.counts[at].tolist(),
        "losses": [round(float(loss), 9) for loss in curve.losses[at]],
        "saved": (curve.costs[-1] - curve.costs[at]).tolist(),
        "scores": [float(f"{score:.5g}") for score in search.scores[group.name]],
        "kept": group.size if found is None else found.counts[group.name],
    }
