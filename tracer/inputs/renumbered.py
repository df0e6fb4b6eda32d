"""Samples for a model with fewer tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...ir.errors import RequestError
from ...runtime.vocabulary.kept import Renumbering
from .input_set import DataSet, Sample, SampleSource


def renumbered(data: DataSet, renumbering: Renumbering, arguments: frozenset[str]) -> DataSet:
    """A data set whose samples were made with all tokens, for a model that has some of them.

    Args:
        data: the data set.
        renumbering: of the tokens.
        arguments: names of the arguments that hold ids.
    """
    return replace(data, source=_RenumberedSamples(data.source, data.name, renumbering, arguments))


@dataclass(frozen=True)
class _RenumberedSamples:
    """Samples with new ids."""

    source: SampleSource
    name: str
    renumbering: Renumbering
    arguments: frozenset[str]

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, length: int) -> Sample:
        """One sample.

        Raises:
            RequestError: it has a token that went.
        """
        found = self.source.sample(index, length)
        return {name: self._new(value) if name in self.arguments else value for name, value in found.items()}

    def _new(self, ids: object) -> object:
        if not isinstance(ids, torch.Tensor) or ids.is_floating_point():
            return ids
        return ids.clone().apply_(self._id)

    def _id(self, number: int) -> int:
        found = self.renumbering.new(number)
        if found is None:
            raise RequestError(
                f"'{self.name}' holds token {number}, which vocabulary has removed",
                "run the passes after vocabulary on its result, in a run of their own, or keep the tokens of this data",
            )
        return found
