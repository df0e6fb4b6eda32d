"""obs: remove the units with the smallest error after the remaining weights are refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.options import option
from ..select.target import UNIFORM
from .consumer_pass import ConsumerScored

if TYPE_CHECKING:
    from ...ir.groups import Group
    from ..data import Scores
    from ..state import State

METRICS = ("loss", "outputs")


@dataclass(frozen=True, kw_only=True)
class Obs(ConsumerScored):
    """Remove the units that the others can best replace (OBS: OSSCAR, SlimGPT, Tyr-the-Pruner, arXiv 2503.09657).

    Units are removed in rounds, and the costs of the remaining units are computed again after every round: heads one by
    one, other widths in ``rounds`` steps. Layers are scored in order: all layers before are already cut and refitted,
    and the outputs are compared with the dense model's. With a target or another ``by`` than uniform, widths are
    decided after the scores, so every layer is scored with dense inputs. With ``metric=loss``, errors are weighed by
    their effect on the loss, and scores of all groups can be compared. Write ``compensate`` after it for the final
    refit.
    """

    name: ClassVar[str] = "obs"

    rounds: int = option(
        16, "how often scores of units other than heads are computed again", at_least=1,
        hint="use 1 to score once, or 16",
    )  # fmt: skip
    damping: float = option(
        0.01, "strength of the pull to the present weights, relative to the mean second moment", at_least=0,
        hint="use 0.01, or 0 for none",
    )  # fmt: skip
    metric: str = option(
        "loss", "loss: output errors are weighed by their effect on the loss; outputs: all count equally", METRICS
    )
    sequential: bool = option(
        True, "true: layers are scored after the layers before them were pruned; false: with dense inputs"
    )

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """For every unit the total error when it is removed, with all units that were removed before it.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for second moments that are not finite, or singular without damping.
        """
        from .obs_rounds import ObsRounds

        return ObsRounds(self).scores(groups, state)

    @property
    def compares(self) -> bool:
        """True with ``metric=loss``: all scores are changes of one loss."""
        return self.metric == "loss"

    @property
    def for_one_budget(self) -> bool:
        """False when all units of each group are scored, for any budget."""
        return not self._open

    @property
    def _open(self) -> bool:
        """Whether widths are decided after the scores. Then all units of each group are scored, and every layer gets
        dense inputs."""
        return self.target is not None or self.by != UNIFORM

    def losses(self, group: Group, scores: Scores) -> Scores:
        """The scores: the total error when a unit is removed; for channels, the scores are summed as usual."""
        import numpy as np

        from ...ir.groups import Kind

        if group.kind is Kind.CHANNELS:
            return super().losses(group, scores)
        rows = np.sort(scores.reshape(-1, group.size), axis=1)
        return np.concatenate([np.zeros(1), np.maximum.accumulate(rows.max(0))])
