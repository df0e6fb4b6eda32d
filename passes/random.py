"""random: units go by chance; the baseline that every score has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.groups import Group
from ..ir.options import option
from .data import Scores
from .prune import Prune, random_scores
from .state import State


@dataclass(frozen=True, kw_only=True)
class Random(Prune):
    """Remove random units; needs no weights, so that it also answers what a ratio would leave."""

    name: ClassVar[str] = "random"
    needs_weights: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    seed: int = option(0, "seed of the choice")

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Uniform random importance."""
        del state
        return random_scores(groups, self.seed)
