"""flap: remove the units whose inputs vary least, because a bias can replace a constant input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .consumer_pass import ColumnScored

if TYPE_CHECKING:
    from torch import Tensor

    from ...ir import Indices
    from ...ir.groups import Group
    from ..calibrate.spread import RunningVariance
    from ..data import Scores
    from ..select.costs import Costs


@dataclass(frozen=True, kw_only=True)
class Flap(ColumnScored):
    """Remove the units with the smallest ``Var(x_j) * |W_j|_2^2`` (FLAP, arXiv 2312.11983, equation 5).

    As in FLAP's code, the scores of the columns of a weight are standardised: mean 0, standard deviation 1. The columns
    of heads are squared before that. A unit gets the mean of its columns. With ``by=global``, one threshold on these
    scores cuts all layers and kinds (section "adaptive structure search").
    """

    name: ClassVar[str] = "flap"

    def columns(self, weight: Tensor, spread: RunningVariance) -> Tensor:
        """Sum of squared deviations of a column's input, times the squared norm of its weights."""
        return spread.squares * weight.square().sum(0)

    def gathered(self, group: Group, columns: Scores, units: Indices) -> Scores:
        """The mean of the standardised columns of each unit."""
        import numpy as np

        from ...ir.groups import HEAD_KINDS

        known = columns**2 if group.kind in HEAD_KINDS else columns
        deviation = known.std(ddof=1) if len(known) > 1 else 0.0
        known = (known - known.mean()) / (deviation if deviation != 0 else 1.0)
        return np.bincount(units, weights=known) / np.maximum(np.bincount(units), 1)

    def in_one_unit(self, losses: Mapping[str, Scores], groups: Sequence[Group], costs: Costs) -> Mapping[str, Scores]:
        """Losses with which one threshold cuts all groups."""
        from ..select.common_unit import with_one_threshold

        return with_one_threshold(losses, groups, costs)
