"""What passes read: text, inputs of other kinds, weights, and scores of units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import TypeIs

if TYPE_CHECKING:
    import torch

    from ..ir.cache import CacheGraph
    from ..ir.groups import Group
    from ..runtime.vocabulary.kept import Renumbering

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

    def tokens(self) -> torch.Tensor:
        """All token ids of the text, int64 ``[T]``."""


Inputs = Mapping[str, Any]
"""The arguments of one call of a model, by name: tensors ``[samples, ...]``, and plain values."""


class InputSet(Protocol):
    """Samples for a model that is called with other things than windows of text, for calibration and recovery."""

    @property
    def name(self) -> str:
        """The name that the user gave, such as a path."""

    @property
    def labelled(self) -> bool:
        """Whether the samples have ``labels``, so that the model returns a loss."""

    @property
    def divided(self) -> bool:
        """Whether an element is one sample; if not, it is a batch of its own."""

    def rows(self, length: int, count: int | None = None, seed: int | None = None) -> Sequence[Inputs]:
        """Samples, each as the arguments of a call with it alone.

        Args:
            length: the most tokens of a text in them.
            count: how many; all when None.
            seed: None takes the first ones in order; an integer draws them at random.

        Raises:
            RequestError: there are fewer than ``count``.
        """

    def join(self, rows: Sequence[Inputs]) -> Inputs:
        """One batch of several samples; masks and labels leave out what fills shorter ones up.

        Raises:
            RequestError: they do not fit each other.
        """


Calibration = Corpus | InputSet
"""What scores are computed on, or recovery trains on."""


def is_inputs(data: Calibration | None) -> TypeIs[InputSet]:
    """Whether data is a set of inputs, and not text."""
    return data is not None and hasattr(data, "join")


class Weights(Protocol):
    """Reads parameters one at a time, by their first names."""

    def __call__(self, names: Iterable[str]) -> Iterable[tuple[str, torch.Tensor]]:
        """Name and value of each named parameter, in the order that is fastest to read."""


class Storage(Protocol):
    """What a model takes where it is used, as far as its graph does not say it."""

    @property
    def has_cache(self) -> bool:
        """Whether it is a model that keeps keys and values of what it has read."""

    @property
    def cache_itemsize(self) -> int:
        """Bytes of an element of the cache, when the model runs in the dtype of its files."""

    def itemsize(self, name: str, dtype: str) -> int:
        """Bytes of an element of a tensor, where it is loaded as it is stored: by its name in the source, and the dtype
        that it has in the graph."""

    def cache(self, context: int, model: torch.nn.Module | None) -> CacheGraph:
        """The graph of a model with its cache as the result; of the model before any pass when None.

        Args:
            context: tokens that have been read.
            model: as it is now.

        Raises:
            FxpruneError: it keeps no cache that can be counted.
        """


@dataclass(frozen=True)
class TokenCut:
    """Tokens that went from a model, for what holds ids besides it.

    Attributes:
        group: the tokens, as they were.
        renumbering: of those that stayed.
        arguments: names of the model's arguments that hold ids.
        compared: tokens, as they were numbered, that the model itself looks for in its inputs.
    """

    group: Group
    renumbering: Renumbering
    arguments: frozenset[str]
    compared: frozenset[int]


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
