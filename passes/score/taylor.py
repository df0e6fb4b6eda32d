"""taylor: remove the units whose removal changes the loss least, estimated to first or second order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.options import option, seed_option
from ..prune import Prune
from .choices import REDUCTIONS, TAYLOR_TERMS

if TYPE_CHECKING:
    from ...ir.groups import Group
    from ..data import Scores
    from ..state import State


@dataclass(frozen=True, kw_only=True)
class Taylor(Prune):
    """Remove the units with the smallest Taylor importance (LLM-Pruner, arXiv 2305.11627, section 3.2)."""

    name: ClassVar[str] = "taylor"
    takes_loss: ClassVar[bool] = True

    variant: str = option(
        "element1", "vector: |sum w g|; element1: sum |w g|; second, element2: with squared g", TAYLOR_TERMS
    )
    reduce: str = option("sum", "how the scores of a group's tensors are combined", REDUCTIONS)
    samples: int = option(10, "calibration windows", at_least=1)
    length: int = option(
        128, "tokens in a calibration window", at_least=2, hint="a window of one token holds nothing to predict"
    )
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one pass over the calibration windows, for all groups at once.

        Raises:
            RequestError: without calibration data or losses, or with too little.
            FxpruneError: for a loss or gradient that is not finite.
        """
        from ..data import is_inputs
        from .gradients.input_losses import losses_on, mean_of
        from .gradients.taylor_of_losses import taylor_of_losses
        from .gradients.taylor_terms import taylor
        from .units import unit_scores, wanted

        runner, places = state.subject.runner, wanted(groups, state.subject.graph)
        if state.data.losses:
            found = taylor_of_losses(runner, state.data.losses, places, self.variant, state.ranks)
            return {group.name: unit_scores(group, found, self.reduce) for group in groups}
        if is_inputs(inputs := state.data.calibration):
            rows = [inputs.join([row]) for row in inputs.rows(self.length, self.samples, self.seed)]
            means = [mean_of(loss) for loss in losses_on(inputs, rows, state.subject.outputs)]
            found = taylor_of_losses(runner, means, places, self.variant, state.ranks)
            return {group.name: unit_scores(group, found, self.reduce) for group in groups}
        tokens = state.data.text("taylor scores need").windows(self.length, self.samples, self.seed)
        found = taylor(runner, tokens, places, self.variant, state.ranks)
        return {group.name: unit_scores(group, found, self.reduce) for group in groups}
