"""Records the linear calls of a model that runs block by block, for each batch with its own padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from ...runtime.block_runner import BlockRunner
from ...runtime.experts import ONE_BY_ONE, experts_as
from ...runtime.tensors import tensors_by_name
from ...runtime.turns import Around
from .batches import LinearCall
from .linear_calls import LinearCallRecorder


@contextmanager
def recorded_calls(
    runner: BlockRunner, names: Sequence[str], receive: Callable[[LinearCall], None]
) -> Iterator[Around]:
    """Yields the context for each batch of a run in which calls on the named weights go to ``receive``."""
    recorders: dict[int, LinearCallRecorder] = {}
    masks: dict[int, Tensor | None] = {}
    current = [0]

    def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        masks[current[0]] = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def around(batch: int) -> AbstractContextManager[Any]:
        current[0] = batch
        if batch not in recorders:
            tensors = tensors_by_name(runner.model)
            weights = {name: tensors[name] for name in names}
            recorders[batch] = LinearCallRecorder(weights, lambda: masks.get(batch), receive=receive)
        return recorders[batch]

    handle = runner.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with experts_as(ONE_BY_ONE, runner.model):
            yield around
    finally:
        handle.remove()
