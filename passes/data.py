"""What passes read: text, weights, and scores of units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Scores = npt.NDArray[np.float64]
"""The importance of every unit of a group, float64 ``[units]``."""


class Corpus(Protocol):
    """Text that has been tokenised: what calibration and recovery read."""

    @property
    def name(self) -> str:
        """What the user called it."""

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Token ids ``[count, length]`` int64, non-overlapping and unpadded.

        Args:
            length: tokens in a window.
            count: how many; all of them when None.
            seed: None takes the first windows in order, an integer draws them at random.

        Raises:
            RequestError: when the text holds fewer than ``count`` windows.
        """


class Weights(Protocol):
    """Parameters by their first names, read one at a time."""

    def __call__(self, names: Iterable[str]) -> Iterable[tuple[str, torch.Tensor]]:
        """Name and value of the named parameters, in whatever order is quickest."""
