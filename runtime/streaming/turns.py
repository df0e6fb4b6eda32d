"""All batches through a model in step, one block after the other.

The forward of every batch is a coroutine that stops where a block is called. So a block gets all batches while its
weights are in memory, whatever the model's own code does between blocks.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import greenlet
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...ir.errors import FxpruneError
from .blocks import BlockList
from .side_effects import PassesOnMoreError, SideEffects

Feed = Callable[[nn.Module], Any]
"""Runs a model on one batch; what it returns is the result."""

Around = Callable[[int], AbstractContextManager[Any]]
"""Batch number -> a context manager, entered whenever code of the model runs for this batch."""


@dataclass(frozen=True)
class Arrival:
    """A block that a batch has come to.

    Attributes:
        path: module path of the block.
        args, kwargs: what it was called with.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Coroutine:
    """The forward of one batch.

    Attributes:
        number: of the batch.
        arrival: where it waits; None when it has finished.
        result: what the feed returned.
    """

    def __init__(
        self,
        number: int,
        feed: Feed,
        model: nn.Module,
        around: Around | None,
        ended: Callable[[int, Any], Any] | None = None,
    ) -> None:
        self.number = number
        self._ended = ended
        self.arrival: Arrival | None = None
        self.result: Any = None
        self._around = around or (lambda _number: nullcontext())
        self._greenlet = greenlet.greenlet(lambda: feed(model))
        self._greenlet.gr_context = contextvars.copy_context()
        self._graded = torch.is_grad_enabled()

    def go_on(self, *output: Any) -> None:
        """Run to the next block, or to the end; ``output`` is that of the block where it waited. What the block raised
        is raised where it was called."""
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(self._graded)
        raised = next((given.error for given in output if isinstance(given, _Raised)), None)
        try:
            with self._around(self.number):
                found = self._greenlet.switch(*output) if raised is None else self._greenlet.throw(raised)
            self._graded = torch.is_grad_enabled()
        finally:
            torch.set_grad_enabled(before)
        if self._greenlet.dead:
            self.arrival = None
            self.result = found if self._ended is None else self._ended(self.number, found)
        else:
            self.arrival = found

    def around(self) -> AbstractContextManager[Any]:
        """The context of its batch, to run a block in."""
        return self._around(self.number)

    def stop(self) -> None:
        """Unwind it where it waits."""
        if self._greenlet and not self._greenlet.dead:
            self._greenlet.throw(greenlet.GreenletExit)

    @property
    def is_current(self) -> bool:
        """Whether this code runs in it."""
        return greenlet.getcurrent() is self._greenlet


@dataclass(frozen=True)
class _Raised:
    """Stands for the output of a block that has none."""

    error: Exception


@dataclass
class Turn:
    """A block that is in memory, and the batches that wait for it.

    Attributes:
        path: module path of the block.
        block: the block.
        waiting: the batches, in order.
        forward: the block's own forward.
        outputs: batch number -> output, where it is known already; the block does not run again for these.
    """

    path: str
    block: nn.Module
    waiting: Sequence[Coroutine]
    forward: Callable[..., Any]
    outputs: dict[int, Any] = field(default_factory=dict)

    @property
    def batches(self) -> list[int]:
        """Numbers of the batches that wait."""
        return [coroutine.number for coroutine in self.waiting]

    def inputs(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the block is called with: copies of tensors, because some blocks write to them."""
        arrival = self._of(batch).arrival
        assert arrival is not None, "a batch of a turn waits for its block"
        return copied((arrival.args, arrival.kwargs))

    def run(self, batch: int) -> Any:
        """The output of the block for a batch, with its present weights. It may run any number of times."""
        args, kwargs = self.inputs(batch)
        with self._of(batch).around():
            return self.forward(*args, **kwargs)

    def checked(self, batch: int) -> Any:
        """The output, likewise, once it is certain that the block can run any number of times.

        Raises:
            PassesOnMoreError: it passes on more than its output. What it keeps at its first run only is no such thing.
        """
        for _ in range(2):
            args, kwargs = self.inputs(batch)
            effects = SideEffects(self.block, (args, kwargs))
            with self._of(batch).around():
                output = self.forward(*args, **kwargs)
            if not effects.found:
                return output
        raise PassesOnMoreError(self.path, "passes on more than its output")

    def _of(self, batch: int) -> Coroutine:
        return next(coroutine for coroutine in self.waiting if coroutine.number == batch)


def copied(tree: Any) -> Any:
    """A tree of arguments with copies of its tensors."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def turns(
    model: nn.Module,
    blocks: BlockList,
    feeds: Sequence[Feed],
    loaded: Callable[[str], AbstractContextManager[Any]],
    around: Around | None = None,
    *,
    room: int | None = None,
    ended: Callable[[int, Any], Any] | None = None,
) -> Generator[Turn, None, list[Any]]:
    """Run batches in step; see :class:`~.block_runner.BlockRunner`, which calls it.

    Args:
        model: the model.
        blocks: its blocks.
        feeds: the batches.
        loaded: path of a block -> a context in which its weights are in memory.
        around: a context for the code of each batch.
        room: bytes of what waiting batches may hold; when it is full, the others begin after these have finished. All
            run in step when None.
        ended: called with number and result of a batch as soon as it has ended; what it returns is the result.

    Returns:
        The results of the feeds, as the value of the generator.

    Raises:
        PassesOnMoreError: a block keeps tensors in its modules, where the next batch would find those of another.
    """
    coroutines = [Coroutine(number, feed, model, around, ended) for number, feed in enumerate(feeds)]
    order = {path: place for place, path in enumerate(blocks.modules)}
    begun = 0
    try:
        with _intercepted(blocks, coroutines) as own:
            while begun < len(coroutines):
                begun = _begin(coroutines, begun, room)
                while arrived := {c: c.arrival.path for c in coroutines[:begun] if c.arrival is not None}:
                    path = min(arrived.values(), key=order.__getitem__)
                    here = [coroutine for coroutine, at in arrived.items() if at == path]
                    with loaded(path):
                        turn = Turn(path, blocks.modules[path], here, own[path])
                        yield turn
                        watched = here[0] if len(coroutines) > 1 else None
                        outputs = [_finished(turn, coroutine, watch=coroutine is watched) for coroutine in here]
                    for coroutine in here:
                        coroutine.go_on(outputs.pop(0))
    finally:
        for coroutine in coroutines:
            coroutine.stop()
    return [coroutine.result for coroutine in coroutines]


def side_by_side(
    first: Generator[Turn, None, Any], second: Generator[Turn, None, Any]
) -> Generator[tuple[Turn, Turn], None, None]:
    """The turns of two models that run the same batches, block by block together.

    Raises:
        FxpruneError: the models do not run the same blocks.
    """
    with closing(first), closing(second):
        for one, other in zip_longest(first, second):
            ran = ["the end" if turn is None else turn.path for turn in (one, other)]
            if ran[0] != ran[1] or one.batches != other.batches:
                raise FxpruneError(
                    f"two models that are compared do not run the same blocks: {ran[0]} and {ran[1]}",
                    "leave out the pass that compares them",
                )
            yield one, other


def _begin(coroutines: Sequence[Coroutine], first: int, room: int | None) -> int:
    """Run batches to their first blocks, one at least, while there is room; returns how many have begun."""
    held = 0
    for number, coroutine in enumerate(coroutines[first:], first):
        if held and room is not None and held >= room:
            return number
        coroutine.go_on()
        held += _size(coroutine.arrival)
    return len(coroutines)


def _size(arrival: Arrival | None) -> int:
    """Bytes of the tensors that a block is given."""
    leaves = pytree.tree_leaves((arrival.args, arrival.kwargs) if arrival is not None else ())
    held = {leaf.untyped_storage().data_ptr(): leaf for leaf in leaves if isinstance(leaf, Tensor)}
    return sum(leaf.untyped_storage().nbytes() for leaf in held.values())


def _finished(turn: Turn, coroutine: Coroutine, *, watch: bool) -> Any:
    """The output of a block for a batch; ``watch``: notice what it keeps besides."""
    if coroutine.number in turn.outputs:
        return turn.outputs.pop(coroutine.number)
    assert coroutine.arrival is not None
    effects = SideEffects(turn.block, ()) if watch else None
    try:
        with coroutine.around():
            output = turn.forward(*coroutine.arrival.args, **coroutine.arrival.kwargs)
    except PassesOnMoreError:
        raise
    except Exception as error:
        return _Raised(error)
    if effects is not None and effects.found:
        raise PassesOnMoreError(turn.path, "keeps tensors from one call to the next")
    return output


@contextmanager
def _intercepted(blocks: BlockList, coroutines: Sequence[Coroutine]) -> Iterator[dict[str, Callable[..., Any]]]:
    """Inside, a block that a coroutine calls waits for its turn; yields the blocks' own forwards."""
    own: dict[str, Callable[..., Any]] = {path: block.forward for path, block in blocks.modules.items()}
    main = greenlet.getcurrent()

    def waiting(path: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if any(coroutine.is_current for coroutine in coroutines):
                return main.switch(Arrival(path, args, kwargs))
            return own[path](*args, **kwargs)

        return forward

    before = {path: vars(block).get("forward") for path, block in blocks.modules.items()}
    try:
        for path, block in blocks.modules.items():
            block.forward = waiting(path)
        yield own
    finally:
        for path, block in blocks.modules.items():
            if before[path] is None:
                vars(block).pop("forward", None)
            else:
                block.forward = before[path]  # type: ignore[assignment]
