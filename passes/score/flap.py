"""flap: remove the units whose inputs vary least, because a bias can replace a constant input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .consumer_pass import ColumnScored

if TYPE_CHECKING:
    from torch import Tensor

    from ...ir import Indices
    from ...ir.groups import Group
    from ..calibrate.spread import RunningVariance
    from ..data import Scores


@dataclass(frozen=True, kw_only=True)
class Flap(ColumnScored):
    """Remove the units with the smallest ``Var(x_j) * |W_j|_2^2`` (FLAP, arXiv 2312.11983, equation 5).

    The score of a head is the mean of its channels' squared scores, as in FLAP's code; for other units it is the sum.
    """

    name: ClassVar[str] = "flap"

    def columns(self, weight: Tensor, spread: RunningVariance) -> Tensor:
        """Sum of squared deviations of a column's input, times the squared norm of its weights."""
        return spread.squares * weight.square().sum(0)

    def gathered(self, group: Group, columns: Scores, units: Indices) -> Scores:
        """Mean of squares for heads, the sum for other units."""
        import numpy as np

        from ...ir.groups import HEAD_KINDS

        if group.kind not in HEAD_KINDS:
            return super().gathered(group, columns, units)
        return np.bincount(units, weights=columns**2) / np.maximum(np.bincount(units), 1)
