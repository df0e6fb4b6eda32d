"""Records the linear calls of a model that runs block by block, for each batch with its own padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from ...runtime.experts import ONE_BY_ONE, experts_as
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.turns import Around
from ...runtime.tensors import tensors_by_name
from .batches import LinearCall, PaddingMasks
from .linear_calls import LinearCallRecorder

PaddingOf = Callable[[], Tensor | None]
"""Gives the mask of the batch that runs, bool ``[B, L]``, False for padding; None without padding."""


@contextmanager
def recorded_calls(
    runner: BlockRunner, names: Sequence[str], receive: Callable[[LinearCall], None], *, shapes_only: bool = False
) -> Iterator[Around]:
    """Yields the context for each batch of a run in which calls on the named weights go to ``receive``.

    Args:
        runner: of the model.
        names: of weights.
        receive: takes each call as it happens.
        shapes_only: as in :class:`~.linear_calls.LinearCallRecorder`.
    """

    def made(weights: Mapping[str, Tensor], mask: PaddingOf) -> LinearCallRecorder:
        return LinearCallRecorder(weights, mask, shapes_only=shapes_only, receive=receive)

    with recorded_by(runner, names, made) as around:
        yield around


@contextmanager
def recorded_by(
    runner: BlockRunner, names: Sequence[str], made: Callable[[Mapping[str, Tensor], PaddingOf], LinearCallRecorder]
) -> Iterator[Around]:
    """Yields the context for each batch of a run in which a recorder of its own sees the calls on the named weights.

    Args:
        runner: of the model.
        names: of weights.
        made: makes a recorder of weights by name, and of what gives the padding of its batch.
    """
    recorders: dict[int, LinearCallRecorder] = {}
    with PaddingMasks(runner.model) as masks, experts_as(ONE_BY_ONE, runner.model):

        def around(batch: int) -> AbstractContextManager[Any]:
            masks.start(batch)
            if batch not in recorders:
                tensors = tensors_by_name(runner.model)
                weights = {name: tensors[name] for name in names}
                recorders[batch] = made(weights, lambda: masks.of(batch))
            return recorders[batch]

        yield around
