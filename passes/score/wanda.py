"""wanda: remove the units with small products of weights and input norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .consumer_pass import ColumnScored

if TYPE_CHECKING:
    from torch import Tensor

    from ..calibrate.spread import RunningVariance


@dataclass(frozen=True, kw_only=True)
class Wanda(ColumnScored):
    """Remove the units with the smallest ``sum over i of |W_ij| * |x_j|_2`` (Wanda, arXiv 2306.11695, by columns)."""

    name: ClassVar[str] = "wanda"

    def columns(self, weight: Tensor, spread: RunningVariance) -> Tensor:
        """Sum of the absolute weights of a column, times the norm of its input over all tokens."""
        return weight.abs().sum(0) * (spread.second * spread.count).sqrt()
