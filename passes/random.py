"""random: remove random units; the baseline for all scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir.groups import Group
from .base import State, option
from .prune import Prune, random_scores
from .select import Scores


@dataclass(frozen=True, kw_only=True)
class Random(Prune):
    """Remove random units, as a baseline; needs no weights, so that it also shows the sizes that a ratio gives."""

    name: ClassVar[str] = "random"
    needs_weights: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    seed: int = option(0, "random seed")

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Uniform random scores."""
        del state
        return random_scores(groups, self.seed)
