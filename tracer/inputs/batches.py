"""Samples from batches that are in memory: of a file of tensors, a function of the user, or the caller's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import RequestError, class_and_first_line
from ..module import resolve_function
from .arguments import Arguments
from .input_set import DataSet, Sample

BATCH_HINT = "give batches as dicts: argument name -> tensor whose first dimension counts samples"


@dataclass(frozen=True)
class Batches:
    """Batches, divided into samples where the first dimensions of all tensors count them.

    Attributes:
        batches: argument name -> value.
        places: number of the batch and of the sample in it; None for all of the batch.
    """

    batches: tuple[Sample, ...]
    places: tuple[tuple[int, int | None], ...]

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, index: int, length: int) -> Sample:
        """One sample, or one batch that cannot be divided; they are as they were given, whatever the ``length``."""
        del length
        number, at = self.places[index]
        batch = self.batches[number]
        if at is None:
            return dict(batch)
        return {n: value[at : at + 1] if isinstance(value, Tensor) else value for n, value in batch.items()}


def inputs_of_batches(name: str, batches: Iterable[Any], arguments: Arguments) -> DataSet:
    """A data set from batches.

    Args:
        name: of it, for messages.
        batches: each a mapping of argument name to tensor or plain value; or, for a module that is not of transformers,
            one tensor or a sequence of positional arguments.
        arguments: what the model takes.

    Raises:
        RequestError: there is none, or one of them holds something else or what the model does not take.
    """
    found: list[Sample] = []
    for number, given in enumerate(batches):
        where = f"batch {number} of '{name}'"
        batch = {at: _tensor(value) for at, value in _named(given, arguments, where).items()}
        if not any(isinstance(value, Tensor) for value in batch.values()):
            raise _without_tensor(batch, where)
        if found and batch.keys() != found[0].keys():
            raise RequestError(
                f"{where} holds {', '.join(batch) or 'nothing'}, and the batch before it {', '.join(found[0])}",
                "give the same arguments in all batches",
            )
        if found:
            _refuse_other_kind(batch, found[0], where, number)
        arguments.check(batch, where)
        _refuse_not_a_number(batch, where)
        found.append(batch)
    if not found:
        raise RequestError(f"'{name}' holds no batch", BATCH_HINT)
    extents = [_samples(batch) for batch in found]
    divided = all(extent is not None for extent in extents)
    places = [
        (number, at)
        for number, extent in enumerate(extents)
        for at in (range(extent) if divided and extent is not None else (None,))
    ]
    if not places:
        raise RequestError(f"'{name}' holds no sample", BATCH_HINT)
    return DataSet(name, Batches(tuple(found), tuple(places)), frozenset(found[0]), divided=divided)


def inputs_of_function(spec: str, arguments: Arguments) -> DataSet:
    """A data set from a function of the user that yields batches.

    All of its batches are kept in memory.

    Args:
        spec: ``package.module:function``; it is called without arguments.
        arguments: what the model takes.

    Raises:
        RequestError: there is no such function, it fails, or it yields something else.
    """
    function = resolve_function(spec)
    try:
        given = function()
        batches = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping | Tensor) else None
    except Exception as error:  # the user's code may raise anything
        raise RequestError(
            f"{spec}() fails: {class_and_first_line(error)}", "give a function without arguments that yields batches"
        ) from error
    if batches is None:
        raise RequestError(f"{spec}() gives a {type(given).__name__}, not batches", BATCH_HINT)
    return inputs_of_batches(spec, batches, arguments)


def _refuse_other_kind(batch: Sample, first: Sample, where: str, number: int) -> None:
    """A pair of inputs and labels in the place of a list of batches would be read as two batches.

    Raises:
        RequestError: a tensor has other dimensions than that of the first batch, or integers where that has none.
    """
    for name, value in batch.items():
        other = first[name]
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            continue
        if value.dim() != other.dim() or value.is_floating_point() != other.is_floating_point():
            shapes = [f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in (value, other)]
            raise RequestError(
                f"{where}: {name!r} is {shapes[0]}, and that of batch {number - 1} is {shapes[1]}",
                "give a list of batches of one kind; what a module is called with has no labels",
            )


def _without_tensor(batch: Sample, where: str) -> RequestError:
    nested = [name for name, value in batch.items() if isinstance(value, Mapping | list | tuple) and value]
    if not nested:
        return RequestError(f"{where} holds no tensor", BATCH_HINT)
    return RequestError(
        f"{where}: {nested[0]!r} is a {type(batch[nested[0]]).__name__}, and the arguments in a data set are tensors",
        "give a module whose forward takes tensors, such as one that puts these together",
    )


def _named(given: Any, arguments: Arguments, where: str) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    values: Sequence[Any] | None = [given] if isinstance(given, Tensor) else None
    if isinstance(given, tuple | list):
        values = given
    if values is None or len(values) > len(arguments.names):
        raise RequestError(f"{where} is a {type(given).__name__}", BATCH_HINT)
    return dict(zip(arguments.names, values, strict=False))


def _tensor(value: Any) -> Any:
    """A NumPy array as a tensor; anything else as it is."""
    return torch.from_numpy(value) if type(value).__module__ == "numpy" and hasattr(value, "dtype") else value


def _refuse_not_a_number(batch: Sample, where: str) -> None:
    """Masks may hold infinities; no input holds what is no number.

    Raises:
        RequestError: with the argument and the first such sample.
    """
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and bool((bad := value.isnan()).any()):
            at = int(bad.nonzero()[0][0]) if value.dim() else 0
            raise RequestError(f"{where}: {name!r} holds NaN, first in sample {at}", "leave these samples out")


def _samples(batch: Sample) -> int | None:
    """The first extent of all tensors; None where they differ."""
    extents = {value.shape[0] if value.dim() else None for value in batch.values() if isinstance(value, Tensor)}
    return extents.pop() if len(extents) == 1 else None
