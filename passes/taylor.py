"""taylor: remove the units whose removal changes the loss least, estimated to first or second order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ir import RequestError
from ..ir.groups import Group
from .base import State, option
from .gradients import taylor
from .losses import taylor_of_losses
from .prune import Prune
from .select import REDUCTIONS, Scores, unit_scores, wanted

VARIANTS = ("vector", "element1", "second", "element2")


@dataclass(frozen=True, kw_only=True)
class Taylor(Prune):
    """Remove the units with the smallest Taylor importance (LLM-Pruner, arXiv 2305.11627, section 3.2)."""

    name: ClassVar[str] = "taylor"
    takes_loss: ClassVar[bool] = True

    variant: str = option(
        "element1", "vector: |sum w g|; element1: sum |w g|; second, element2: with squared g", VARIANTS
    )
    reduce: str = option("sum", "how the scores of a group's tensors are combined", REDUCTIONS)
    samples: int = option(10, "calibration windows")
    length: int = option(128, "tokens in a calibration window")
    seed: int | None = option(None, "random seed for the choice of windows; none takes the first windows in order")

    def check(self) -> None:
        """Also check the calibration options."""
        super().check()
        if self.samples < 1:
            raise RequestError(f"samples {self.samples} is not positive", "use at least one calibration window")
        if self.length < 2:
            raise RequestError(f"length {self.length} leaves no token to predict", "use windows of at least 2 tokens")

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one pass over the calibration windows, for all groups at once.

        Raises:
            RequestError: without calibration text or losses, or with too little text.
            FxpruneError: for a loss or gradient that is not finite.
        """
        if state.losses:
            found = taylor_of_losses(state.model, state.losses, wanted(groups, state.graph), self.variant)
            return {group.name: unit_scores(group, found, self.reduce) for group in groups}
        tokens = state.text("taylor scores need").windows(self.length, self.samples, self.seed)
        found = taylor(state.model, tokens, wanted(groups, state.graph), self.variant)
        return {group.name: unit_scores(group, found, self.reduce) for group in groups}
