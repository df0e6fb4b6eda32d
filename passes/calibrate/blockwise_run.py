"""Runs a model block by block: the output of finished blocks is stored, so that they do not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...ir import RequestError
from ...runtime.experts import ONE_BY_ONE, experts_as
from ...runtime.tolerances import BLOCK_TOLERANCE, relative_difference
from ..model.blocks import find_blocks
from ..model.forward import inference
from .batches import Feed, LinearCall, padding_mask
from .linear_calls import LinearCallRecorder


class _LastBlockReached(Exception):
    """The last block that is needed has run."""


@dataclass
class BlockwiseRun:
    """A blockwise run of one model on calibration batches.

    The outputs of the last finished block are stored for every batch, and finished blocks do not run again. If blocks
    pass on more than their outputs, this is detected, and the whole model runs every time.

    Attributes:
        model: a module on any device.
        feeds: the calibration batches.
        blocks: its blocks in order; empty when the model has no sequence of blocks.
        path: module path of the list that holds them.
        done: number of finished blocks.
    """

    model: nn.Module
    feeds: Sequence[Feed]
    blocks: tuple[nn.Module, ...] = ()
    path: str = ""
    done: int = 0
    _kept: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, feeds: Sequence[Feed]) -> BlockwiseRun:
        """A run with no finished block."""
        try:
            found = find_blocks(model)
        except RequestError:
            return cls(model, feeds)
        return cls(model, feeds, found.modules, found.path)

    def block_of(self, module: str) -> int | None:
        """Index of the block that contains a module path; None outside the blocks."""
        inside = self.path and module.startswith(f"{self.path}.")
        index = module[len(self.path) + 1 :].partition(".")[0] if inside else ""
        return int(index) if index.isdigit() else None

    def calls(
        self,
        batch: int,
        weights: Mapping[str, Tensor],
        last: int | None = None,
        hook: tuple[str, Any] | None = None,
        *,
        shapes_only: bool = False,
        receive: Callable[[LinearCall], None] | None = None,
    ) -> list[LinearCall]:
        """Run one batch and record the linear calls on some weights.

        Args:
            batch: index in ``feeds``.
            weights: weights by name.
            last: index of the last block that must run; the whole model runs when None.
            hook: module path, and a forward pre-hook with keyword arguments for this run.
            shapes_only: record calls without their inputs and outputs.
            receive: takes each call as it happens; then no calls are returned.
        """
        with ExitStack() as stack:
            mask = stack.enter_context(padding_mask(self.model))
            stack.enter_context(experts_as(ONE_BY_ONE, self.model))
            if hook is not None:
                module = self.model.get_submodule(hook[0])
                handle = module.register_forward_pre_hook(hook[1], with_kwargs=True)
                stack.callback(handle.remove)
            recorder = LinearCallRecorder(weights, mask, shapes_only=shapes_only, receive=receive)
            with recorder:
                self._run(batch, last)
        return recorder.calls

    def advance(self, done: int) -> None:
        """Mark the first ``done`` blocks as finished: they will not change any more."""
        if not self.blocks or done <= self.done or done > len(self.blocks):
            return
        kept = [self._output(batch, done - 1) for batch in range(len(self.feeds))]
        before, self.done = self.done, 0
        if before and not _same(self._output(0, done - 1), kept[0]):
            self.blocks = ()  # blocks pass on more than their outputs: always run them all
            return
        self._kept, self.done = kept, done

    def _output(self, batch: int, block: int) -> Any:
        found: list[Any] = []
        handle = self.blocks[block].register_forward_hook(lambda _m, _a, out: found.append(out))
        try:
            self._run(batch, block)
        finally:
            handle.remove()
        return found[-1]

    def _run(self, batch: int, last: int | None) -> None:
        with inference(self.model), self._shortened(batch, last):
            try:
                self.feeds[batch](self.model)
            except _LastBlockReached:
                return

    @contextmanager
    def _shortened(self, batch: int, last: int | None) -> Iterator[None]:
        """Inside, finished blocks return their stored outputs, and the run ends after block ``last``."""

        def stop(_module: nn.Module, _args: Any, _out: Any) -> None:
            raise _LastBlockReached

        replaced = self.blocks[: self.done]
        handle = None
        if last is not None and self.blocks:
            handle = self.blocks[last].register_forward_hook(stop)
        own = [vars(block).get("forward") for block in replaced]
        for block in replaced:
            block.forward = _giving(self._kept[batch])
        try:
            yield
        finally:
            for block, forward in zip(replaced, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward
            if handle is not None:
                handle.remove()


def _giving(output: Any) -> Callable[..., Any]:
    # Return a copy each time, because some models add to the hidden states in place.
    return lambda *_args, **_kwargs: pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)


def _same(first: Any, second: Any) -> bool:
    a, b = (t for t in (pytree.tree_leaves(first), pytree.tree_leaves(second)))
    if len(a) != len(b):
        return False
    return all(
        not isinstance(x, torch.Tensor) or relative_difference(y, x) <= BLOCK_TOLERANCE
        for x, y in zip(a, b, strict=True)
    )


__all__ = ["BlockwiseRun"]
