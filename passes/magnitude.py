"""magnitude: units with small weights go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.groups import Group
from ..ir.options import option
from .contributions import magnitude
from .data import Scores
from .prune import Prune
from .select import REDUCTIONS, unit_scores, wanted
from .state import State


@dataclass(frozen=True, kw_only=True)
class Magnitude(Prune):
    """Remove the units with the smallest sum of ``|w|**p`` (LLM-Pruner's L1 and L2 importance); reads no text."""

    name: ClassVar[str] = "magnitude"
    streams: ClassVar[bool] = True

    p: int = option(2, "exponent: 1 sums absolute weights, 2 their squares", (1, 2))
    reduce: str = option("sum", "how the tensors of a group are reduced to one score", REDUCTIONS)

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Sums of ``|w|**p`` over everything that goes with a unit."""
        found = magnitude(state.subject.model, wanted(groups, state.subject.graph), self.p, state.host.weights)
        return {group.name: unit_scores(group, found, self.reduce) for group in groups}
