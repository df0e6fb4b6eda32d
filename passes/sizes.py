"""Several sizes of one model from one scoring, each a part of the next larger one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..ir import FxpruneError, Indices
from ..ir.groups import Group
from .data import Scores
from .score_cache import ScoreCache


@dataclass
class NestedSizes:
    """What the runs for several sizes share, the largest first. The first one fills it; the others go by it.

    Attributes:
        share: about how much of every group the first one removed, which says what kinds of heads are cut; None when
            that is not known.
        scores: group name -> scores of its units.
        measured: what a search measured for single groups.
        kept: group name -> the units that the next larger size keeps; empty for the first.
        larger: its target; "" for the first.
        chosen: target and kept units of the size that is being made; a run that starts again chooses again.
    """

    share: float | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    measured: ScoreCache = field(default_factory=lambda: ScoreCache(""))
    kept: Mapping[str, Indices] = field(default_factory=dict)
    larger: str = ""
    chosen: tuple[str, Mapping[str, Indices]] | None = None

    def most(self, groups: Mapping[str, Group]) -> dict[str, int]:
        """Group name -> the most units that may be kept, per parent unit."""
        return {name: len(kept) * groups[name].size // groups[name].units for name, kept in self.kept.items()}

    def choose(self, target: str, keep: Mapping[str, Indices]) -> None:
        """Remember what a size keeps.

        Raises:
            FxpruneError: it is no part of the larger one.
        """
        for name, before in self.kept.items():
            if name not in keep or not np.isin(keep[name], before).all():
                raise FxpruneError(
                    f"{target} would keep units of {name} that {self.larger} does not keep",
                    "prune the sizes one by one, in runs of their own",
                )
        self.chosen = (target, dict(keep))

    def go_on(self) -> None:
        """The size is made; the next one is a part of it."""
        if self.chosen is not None:
            self.larger, self.kept = self.chosen
            self.chosen = None
