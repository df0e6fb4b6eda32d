"""random: remove random units; the baseline for all scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.options import seed_option
from ..prune import Prune

if TYPE_CHECKING:
    from ...ir.groups import Group
    from ..data import Scores
    from ..state import State


@dataclass(frozen=True, kw_only=True)
class Random(Prune):
    """Remove random units, as a baseline; needs no weights, so that it also shows the sizes that a ratio gives."""

    name: ClassVar[str] = "random"
    needs_weights: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    seed: int = seed_option(0, "random seed")

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Uniform random scores, from one random generator for all groups in order."""
        import numpy as np

        del state
        generator = np.random.default_rng(self.seed)
        return {group.name: generator.random(group.units) for group in groups}
