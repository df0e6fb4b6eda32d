"""The base of wanda, flap, activation, fisher and obs: scores from the inputs of the weights that read a group."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...ir.options import option, seed_option
from ..prune import Prune

if TYPE_CHECKING:
    from torch import Tensor

    from ...ir import Indices
    from ...ir.groups import Group
    from ...runtime.ranks import Ranks
    from ..calibrate.batches import Feed
    from ..calibrate.spread import RunningVariance
    from ..data import Scores
    from ..state import Data, State


@dataclass(frozen=True, kw_only=True)
class ConsumerScored(Prune):
    """A pruning pass whose scores come from the inputs of the weights that read the units."""

    samples: int = option(64, "calibration windows", at_least=1)
    length: int = option(128, "tokens in a calibration window", at_least=1)
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")
    batch: int = option(8, "windows in one forward pass", at_least=1)

    def feeds(self, data: Data, ranks: Ranks) -> list[Feed]:
        """The calibration batches of this rank, as :func:`~.batches.calibration_feeds` makes them."""
        from ..calibrate.batches import calibration_feeds

        who = f"{self.name} scores need"
        return calibration_feeds(
            data, who, samples=self.samples, length=self.length, seed=self.seed, batch=self.batch, ranks=ranks
        )


@dataclass(frozen=True, kw_only=True)
class ColumnScored(ConsumerScored):
    """Scores of single columns, from their weights and the variance of their inputs, combined into units."""

    @abstractmethod
    def columns(self, weight: Tensor, spread: RunningVariance) -> Tensor:
        """The score of every input of a linear map, float64 ``[k]``.

        Args:
            weight: float64 ``[n, k]``.
            spread: count, mean and variance of the inputs.
        """

    def gathered(self, group: Group, columns: Scores, units: Indices) -> Scores:
        """Scores of units from the scores of their columns: the sum."""
        import numpy as np

        del group
        return np.bincount(units, weights=columns).astype(np.float64)

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward pass over the calibration data; stores one vector per linear map.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for inputs that are not finite.
        """
        from .consumer_scores import column_scores

        return column_scores(self, groups, state)
