"""Records the linear calls of a model that runs block by block, for each batch with its own padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ...runtime.experts import ONE_BY_ONE, experts_as
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.turns import Around
from ...runtime.tensors import tensors_by_name
from .batches import LinearCall, PaddingMasks
from .linear_calls import LinearCallRecorder


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
    recorders: dict[int, LinearCallRecorder] = {}
    with PaddingMasks(runner.model) as masks, experts_as(ONE_BY_ONE, runner.model):

        def around(batch: int) -> AbstractContextManager[Any]:
            masks.start(batch)
            if batch not in recorders:
                tensors = tensors_by_name(runner.model)
                weights = {name: tensors[name] for name in names}
                recorders[batch] = LinearCallRecorder(
                    weights, lambda: masks.of(batch), shapes_only=shapes_only, receive=receive
                )
            return recorders[batch]

        yield around
