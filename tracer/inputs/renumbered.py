"""A data set for a model with fewer tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...ir.errors import RequestError
from ...runtime.vocabulary.kept import Renumbering
from ..texts.fingerprints import Fingerprint
from .input_set import Sample


class Remembered(Protocol):
    """A data set that remembers which samples were read."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def labelled(self) -> bool:
        """Whether the samples have labels."""

    @property
    def divided(self) -> bool:
        """Whether an element is one sample."""

    @property
    def pieces_read(self) -> dict[str, npt.NDArray[np.int64]]:
        """The numbers of the samples that were read."""

    def remember(self, pieces: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Also count these as read."""

    def rows(self, length: int, count: int | None = None, seed: int | None = None) -> Sequence[Sample]:
        """Samples."""

    def join(self, rows: Sequence[Mapping[str, Any]]) -> Sample:
        """One batch of several."""

    def fingerprint(self, read_as: str, name: str) -> Fingerprint | None:
        """What was read."""


@dataclass
class RenumberedInputs:
    """A data set whose samples were made with all tokens, for a model that has some of them. Implements the passes'
    ``InputSet``, and remembers as the data set in it does.

    Attributes:
        inputs: the data set.
        renumbering: of the tokens.
        arguments: names of the arguments that hold ids.
    """

    inputs: Remembered
    renumbering: Renumbering
    arguments: frozenset[str]

    @property
    def name(self) -> str:
        return self.inputs.name

    @property
    def labelled(self) -> bool:
        return self.inputs.labelled

    @property
    def divided(self) -> bool:
        return self.inputs.divided

    @property
    def pieces_read(self) -> dict[str, npt.NDArray[np.int64]]:
        return self.inputs.pieces_read

    def remember(self, pieces: Mapping[str, npt.NDArray[np.int64]]) -> None:
        self.inputs.remember(pieces)

    def fingerprint(self, read_as: str, name: str) -> Fingerprint | None:
        return self.inputs.fingerprint(read_as, name)

    def join(self, rows: Sequence[Mapping[str, Any]]) -> Sample:
        return self.inputs.join(rows)

    def rows(self, length: int, count: int | None = None, seed: int | None = None) -> Sequence[Sample]:
        """As the data set's, with new ids.

        Raises:
            RequestError: a sample has a token that went.
        """
        return [self._renumbered(row) for row in self.inputs.rows(length, count, seed)]

    def _renumbered(self, row: Mapping[str, Any]) -> Sample:
        return {
            name: self._new(value) if name in self.arguments and isinstance(value, torch.Tensor) else value
            for name, value in row.items()
        }

    def _new(self, ids: torch.Tensor) -> torch.Tensor:
        if ids.is_floating_point():
            return ids
        try:
            return ids.clone().apply_(self._id)
        except KeyError as gone:
            raise RequestError(
                f"'{self.name}' holds token {gone.args[0]}, which vocabulary has removed",
                "run the passes after vocabulary on its result, in a run of their own, or keep the tokens of this data",
            ) from None

    def _id(self, number: int) -> int:
        found = self.renumbering.new(number)
        if found is None:
            raise KeyError(number)
        return found
