"""Scores of whole experts from the tokens that a router sends them: the base of reap, activation_norm and frequency."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np

from ....ir import FxpruneError, RequestError
from ....ir.graph import Graph
from ....ir.groups import Group
from ....ir.options import option
from ...calibrate.expert_calls import ExpertCall, ExpertCallRecorder
from ...calibrate.recorded_calls import recorded_by
from ...couple.consumers import find_consumers
from ...data import Scores
from ...prune import HEAD_CHOICES
from ...state import State
from ..consumer_pass import ConsumerScored


@dataclass(frozen=True)
class RoutedTokens:
    """Sums over the tokens that a router sent to every expert of a mixture; all arrays are float64 ``[experts]``.

    Attributes:
        count: number of the tokens.
        norms, squares: sums of the L2 norms of the expert's outputs, without the router's weights, and of the squares
            of these norms.
        weighted: sum of the norms times the router's weights.
    """

    count: Scores
    norms: Scores
    squares: Scores
    weighted: Scores

    def mean(self, sums: Scores) -> Scores:
        """Sums divided by the number of tokens; 0 for an expert without any."""
        return np.divide(sums, self.count, out=np.zeros_like(sums), where=self.count > 0)


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


@dataclass(frozen=True, kw_only=True)
class ExpertScored(ConsumerScored):
    """A pruning pass that removes whole experts, scored by the tokens that a router sends them. What is left is picked
    and weighted among itself, as the router's own code does it."""

    heads: str = option("off", "only off: these scores are for whole experts", HEAD_CHOICES)
    ffn: bool = option(False, "only false: these scores are for whole experts")
    experts: bool = option(True, "only true: these scores are for whole experts")

    needs_gates: ClassVar[bool] = False

    def check(self) -> None:
        """Also refuse kinds of units that are no experts."""
        super().check()
        if self.heads != "off" or self.ffn or not self.experts:
            raise RequestError(
                f"{self.name} scores whole experts only, not heads={self.heads}, ffn={str(self.ffn).lower()}, "
                f"experts={str(self.experts).lower()}",
                f"leave the three options out, and give heads and widths to another pass: {self.name},fisher",
            )

    @abstractmethod
    def importance(self, tokens: RoutedTokens) -> Scores:
        """The score of every expert of a mixture, float64 ``[experts]``."""

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward pass over the calibration data. Where experts come in groups of which a router
        picks some, a unit that stands for several experts has the sum of their scores.

        Raises:
            RequestError: without calibration data; for units that are no experts; for experts that all run on all
                tokens; or, where the score needs them, without weights of a router.
            FxpruneError: for outputs that are not finite.
        """
        stacks = {group.name: _last_stack(group, state.subject.graph, self.name) for group in groups}
        shapes = {parameter.name: parameter.value.shape for parameter in state.subject.graph.parameters}
        sums = _RoutedSums({name: int(shapes[name][0]) for name in stacks.values()}, self.needs_gates)
        runner = state.subject.runner
        made = partial(ExpertCallRecorder, receive=sums.add)
        with recorded_by(runner, list(sums.sizes), made) as around:
            runner.run(self.feeds(state.data, state.ranks), around)
        totals = state.ranks.sum_arrays(
            {name: sums.by_name.get(name, np.zeros((4, n))) for name, n in sums.sizes.items()}
        )
        return {group.name: self._of_units(group, stacks[group.name], totals) for group in groups}

    def _of_units(self, group: Group, stack: str, totals: Mapping[str, Scores]) -> Scores:
        if not totals[stack][0].any():
            raise RequestError(
                f"{self.name} cannot score {group.name}: its experts are not called one by one for the tokens that "
                "were sent to them",
                "use taylor{experts=true} or magnitude{experts=true}, whose scores come from the weights",
            )
        found = self.importance(RoutedTokens(*totals[stack]))
        if not np.isfinite(found).all():
            raise FxpruneError(
                f"the {self.name} scores of {group.name} are not finite", "run in float32; check the calibration text"
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
