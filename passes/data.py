"""What passes read: text, weights, and scores of units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Scores = npt.NDArray[np.float64]
"""The importance of every unit of a group, float64 ``[units]``."""


class Corpus(Protocol):
    """Tokenised text, for calibration and recovery training."""

    @property
    def name(self) -> str:
        """The name that the user gave, such as a path."""

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Token ids, int64 ``[count, length]``, without overlap and padding.

        Args:
            length: tokens in a window.
            count: number of windows; all when None.
            seed: None takes the first windows in order; an integer draws them at random.

        Raises:
            RequestError: when the text holds fewer than ``count`` windows.
        """


class Weights(Protocol):
    """Reads parameters one at a time, by their first names."""

    def __call__(self, names: Iterable[str]) -> Iterable[tuple[str, torch.Tensor]]:
        """Name and value of each named parameter, in the order that is fastest to read."""


@dataclass(frozen=True)
class Use:
    """A call of a torch function with integers, some of them attributes.

    Attributes:
        module: path of the module whose code calls it.
        line: of the call, in whatever file it is.
        integers: all of them, in order; marked ones among them.
    """

    module: str
    line: int
    integers: tuple[int, ...]


@dataclass
class Observed:
    """What a run of a module showed: the integers that every module reads, and what they are used for."""

    reads: dict[str, set[str]] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
