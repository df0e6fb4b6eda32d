"""Means and variances of inputs, merged batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


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
