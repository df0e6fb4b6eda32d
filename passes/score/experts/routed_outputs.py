"""Scores of whole experts: sums over the tokens that a router sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ....ir import FxpruneError, RequestError
from ....ir.graph import Graph
from ....ir.groups import Group
from ...calibrate.expert_calls import ExpertCall, ExpertCallRecorder
from ...calibrate.recorded_calls import recorded_by
from ...couple.consumers import find_consumers
from ...data import Scores
from ...state import State
from .expert_pass import ExpertScored
from .routed_tokens import RoutedTokens


@dataclass
class _RoutedSums:
    """The four sums of all mixtures, by the last weight of their experts."""

    sizes: Mapping[str, int]
    weighs: bool
    by_name: dict[str, Scores] = field(default_factory=dict)

    def add(self, call: ExpertCall) -> None:
        """Add the tokens of a call."""
        if call.gates is None and self.weighs:
            raise RequestError(
                f"the outputs of the experts in {call.tensor} are not multiplied by weights of a router",
                "use activation_norm or frequency, which need none",
            )
        norms = call.outputs.double().norm(dim=1)
        weighted = 0.0 if call.gates is None else float((norms * call.gates.double().abs()).sum())
        sums = self.by_name.setdefault(call.tensor, np.zeros((4, self.sizes[call.tensor])))
        sums[:, call.expert] += len(norms), float(norms.sum()), float(norms.square().sum()), weighted


def routed_scores(step: ExpertScored, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    """The scores, as :meth:`~.expert_pass.ExpertScored.scores` returns them."""
    stacks = {group.name: _last_stack(group, state.subject.graph, step.name) for group in groups}
    shapes = {parameter.name: parameter.value.shape for parameter in state.subject.graph.parameters}
    sums = _RoutedSums({name: int(shapes[name][0]) for name in stacks.values()}, step.needs_gates)
    runner = state.subject.runner
    made = partial(ExpertCallRecorder, receive=sums.add)
    with recorded_by(runner, list(sums.sizes), made) as around:
        runner.run(step.feeds(state.data, state.ranks), around)
    totals = state.ranks.sum_arrays({name: sums.by_name.get(name, np.zeros((4, n))) for name, n in sums.sizes.items()})
    return {group.name: _of_units(step, group, stacks[group.name], totals) for group in groups}


def _of_units(step: ExpertScored, group: Group, stack: str, totals: Mapping[str, Scores]) -> Scores:
    if not totals[stack][0].any():
        raise RequestError(
            f"{step.name} cannot score {group.name}: its experts are not called one by one for the tokens that "
            "were sent to them",
            "use taylor{experts=true} or magnitude{experts=true}, whose scores come from the weights",
        )
    found = step.importance(RoutedTokens(*totals[stack]))
    if not np.isfinite(found).all():
        raise FxpruneError(
            f"the {step.name} scores of {group.name} are not finite", "run in float32; check the calibration text"
        )
    (axis,) = {member.axis for member in group.members if (member.tensor, member.dim) == (stack, 0)}
    return np.bincount(group.unit_map(axis), weights=found, minlength=group.units).astype(np.float64)


def _last_stack(group: Group, graph: Graph, who: str) -> str:
    """The weight that gives the outputs of the experts: of their stacks of linear maps the one that is used last."""
    shapes = {parameter.name: parameter.value.shape for parameter in graph.parameters}
    stacks = [(m.tensor, m.dim) for m in group.members if m.dim == 0 and len(shapes[m.tensor]) == 3]
    found = find_consumers(graph, stacks)
    if not found:
        raise RequestError(
            f"{who} cannot score {group.name}: no stack of linear maps holds its units as experts",
            "use taylor or magnitude, whose scores come from the weights",
        )
    return found[-1].tensor
