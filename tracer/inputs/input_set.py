"""A data set of inputs: samples for a model, by argument name, one at a time or put together to a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ...ir.errors import RequestError
from ..calls import calls

Sample = dict[str, Any]
"""Arguments of a call with one sample, tensors ``[1, ...]``, or with a batch that cannot be divided; and plain values,
which are the same in all samples."""

LABELS = "labels"


class SampleSource(Protocol):
    """Where samples come from."""

    def __len__(self) -> int:
        """How many there are."""

    def sample(self, index: int, length: int) -> Sample:
        """One of them; a text in it is cut to ``length`` tokens."""


@dataclass(frozen=True)
class DataSet:
    """Samples for a model; implements the passes' ``DataSet``.

    Attributes:
        name: the name that the user gave, for reports.
        source: where the samples come from; they are read when they are needed.
        names: the arguments in a sample.
        divided: whether an element is one sample, so that several can be put together.
        fillers: argument -> what shorter samples of a batch are filled up with; those of ``calls.json`` if nothing is
            said.
    """

    name: str
    source: SampleSource
    names: frozenset[str]
    divided: bool = True
    fillers: Mapping[str, float] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether the model is told what it should have said, so that it returns a loss."""
        return LABELS in self.names

    def rows(self, length: int, count: int | None = None, seed: int | None = None) -> Rows:
        """Samples, read one by one as they are asked for.

        Args:
            length: the most tokens of a text in them.
            count: how many; all when None.
            seed: None takes the first ones in order, an integer draws them at random without repetition.

        Raises:
            RequestError: there are fewer than ``count``, or none.
        """
        there = len(self.source)
        wanted = there if count is None else count
        if wanted > there or wanted < 1:
            what = "samples" if self.divided else "batches"
            raise RequestError(
                f"'{self.name}' is too short: it holds {there} {what}, {max(wanted, 1)} are needed",
                f"give more data, or write samples={there} in the pass" if there else "give data",
            )
        order = list(range(wanted))
        if seed is not None:
            order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:wanted].tolist()
        return Rows(self.source, tuple(order), length)

    def join(self, rows: Sequence[Mapping[str, Any]]) -> Sample:
        """One batch of several samples; shorter ones are filled up on the right, which masks and labels leave out.

        Raises:
            RequestError: they do not fit each other.
        """
        if len(rows) == 1:
            return dict(rows[0])
        if not self.divided:
            raise RequestError(
                f"batches of '{self.name}' cannot be put together: the first dimensions of their tensors differ",
                "write batch=1 and micro_batch=1",
            )
        return {name: self._joined(name, [row.get(name) for row in rows]) for name in rows[0]}

    def _joined(self, name: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if not isinstance(first, Tensor):
            if any(type(value) is not type(first) or value != first for value in values):
                raise RequestError(f"{name!r} in '{self.name}' is not the same in all samples", "make it a tensor")
            return first
        kinds = {(value.dim(), value.dtype) if isinstance(value, Tensor) else type(value) for value in values}
        if len(kinds) > 1:
            raise RequestError(
                f"{name!r} in '{self.name}' has another number of dimensions or another dtype in some samples",
                "give all samples in one form",
            )
        most = [max(extents) for extents in zip(*(value.shape[1:] for value in values), strict=True)]
        filler = self.fillers.get(name, calls()["fillers"].get(name))
        if filler is None and any(list(value.shape[1:]) != most for value in values):
            raise RequestError(
                f"{name!r} in '{self.name}' has samples of different shapes: {list(first.shape[1:])} and others",
                "give samples of one shape, or write batch=1 and micro_batch=1",
            )
        return torch.cat([_filled(value, most, filler or 0) for value in values])


@dataclass(frozen=True)
class Rows(Sequence[Sample]):
    """Chosen samples of a source.

    Attributes:
        source: where they come from.
        order: which they are.
        length: the most tokens of a text in them.
    """

    source: SampleSource
    order: tuple[int, ...]
    length: int

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Rows(self.source, self.order[index], self.length)
        return self.source.sample(self.order[index], self.length)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def _filled(value: Tensor, shape: Sequence[int], filler: float) -> Tensor:
    """``[1, ...]`` filled up at the end of every dimension but the first."""
    room = [(0, most - there) for most, there in zip(shape, value.shape[1:], strict=True)]
    margins = [margin for pair in reversed(room) for margin in pair]
    return functional.pad(value, margins, value=filler) if any(margins) else value
