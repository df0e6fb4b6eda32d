"""magnitude: remove the units with small weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.options import option
from ..prune import Prune
from .choices import REDUCTIONS

if TYPE_CHECKING:
    from ...ir.groups import Group
    from ..data import Scores
    from ..state import State


@dataclass(frozen=True, kw_only=True)
class Magnitude(Prune):
    """Remove the units with the smallest sum of ``|w|**p`` (LLM-Pruner's L1 and L2 importance); needs no text."""

    name: ClassVar[str] = "magnitude"
    streams: ClassVar[bool] = True

    p: int = option(2, "exponent: 1 sums absolute weights, 2 their squares", (1, 2))
    reduce: str = option("sum", "how the scores of a group's tensors are combined", REDUCTIONS)

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Sums of ``|w|**p`` over all weights that are removed with a unit."""
        from .units import unit_scores, wanted
        from .weight_powers import magnitude

        found = magnitude(state.subject.model, wanted(groups, state.subject.graph), self.p, state.host.weights)
        return {group.name: unit_scores(group, found, self.reduce) for group in groups}
