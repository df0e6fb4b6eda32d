"""Means and variances of inputs, merged batch by batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ...runtime.ranks import Ranks

Where = TypeVar("Where", bound=Hashable)


@dataclass
class RunningVariance:
    """Running mean and variance of every input column, merged batch by batch (Chan, Golub, LeVeque 1979).

    Attributes:
        count: number of tokens.
        mean: ``[k]`` float64.
        squares: sum of squared deviations from the mean, ``[k]`` float64.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        """Add tokens ``[T, k]``."""
        if not len(x):
            return
        x = x.double()
        mean = x.mean(0)
        squares = (x - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self.squares = len(x), mean, squares
            return
        total = self.count + len(x)
        shift = mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * len(x) / total)
        self.mean = self.mean + shift * (len(x) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Variance of each column, ``[k]``."""
        return self.squares / self.count

    @property
    def second(self) -> Tensor:
        """Mean square of each column, ``[k]``."""
        return self.variance + self.mean.square()


def merged(spreads: Mapping[Where, RunningVariance], ranks: Ranks) -> dict[Where, RunningVariance]:
    """Those of all ranks together, exactly: the squares are taken from the common mean (Chan, Golub, LeVeque 1979).

    Args:
        spreads: those of this rank, by keys that mean the same on all.
        ranks: who shares the tokens; all of them call this.
    """
    if ranks.count == 1:
        return dict(spreads)
    full = {key: spread for key, spread in spreads.items() if spread.count}
    parts = {key: torch.cat([s.mean * s.count, s.mean.new_tensor([s.count])]) for key, s in full.items()}
    counted = ranks.sum_all(parts)
    means = {key: total[:-1] / total[-1] for key, total in counted.items()}
    squares = ranks.sum_all({key: s.squares + s.count * (s.mean - means[key]).square() for key, s in full.items()})
    whole = {key: RunningVariance(int(counted[key][-1]), means[key], squares[key]) for key in counted}
    return {key: RunningVariance() for key in spreads} | whole
