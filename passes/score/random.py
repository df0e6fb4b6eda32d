"""random: remove random units; the baseline for all scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...ir.groups import Group
from ...ir.options import seed_option
from ..data import Scores
from ..prune import Prune
from ..state import State


@dataclass(frozen=True, kw_only=True)
class Random(Prune):
    """Remove random units, as a baseline; needs no weights, so that it also shows the sizes that a ratio gives."""

    name: ClassVar[str] = "random"
    needs_weights: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    seed: int = seed_option(0, "random seed")

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Uniform random scores."""
        del state
        return random_scores(groups, self.seed)


def random_scores(groups: Sequence[Group], seed: int) -> dict[str, Scores]:
    """Uniform random scores, from one random generator for all groups in order."""
    generator = np.random.default_rng(seed)
    return {group.name: generator.random(group.units) for group in groups}
