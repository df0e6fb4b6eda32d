"""Runs a model with the weights of one block in memory: forward, and exact gradients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...ir.errors import FxpruneError
from ..reporting import counted, counting
from ..tensors import made_private, tensors_by_name, twin
from .blocks import BlockList
from .gradient_receiver import GradientReceiver
from .left_as_found import left_as_found
from .offloaded_states import OffloadedStates
from .residence import Residence
from .reverse import Loss, Tape, walk_back
from .side_effects import PassesOnMoreError
from .turns import Around, Feed, Turn, turns

WAITING = 1 << 30
"""Bytes of hidden states that may wait while one block after the other is read for all of them."""

HELD = 1 << 28
"""Bytes of hidden states that are kept for the way back, where gradients of weights are not wanted."""

Answer = TypeVar("Answer")


@dataclass
class BlockRunner:
    """A model and where its weights are.

    A list of blocks may turn out to run only as a whole, when a block passes on more than its outputs, or is not called
    as a block. :meth:`run` and :meth:`gradients` then begin again; for :meth:`session` and :meth:`turns`, where the
    work is the caller's, :meth:`again` does that.

    Attributes:
        model: in eval mode while it runs. Where its weights are elsewhere, its parameters are on the meta device.
        residence: brings weights into memory; None when the module holds them.
        whole: path of a list of blocks that runs as a whole all the same -> why.
        stops: paths of modules outside the lists that have a turn of their own.
    """

    model: nn.Module
    residence: Residence | None = None
    whole: dict[str, str] = field(default_factory=dict)
    stops: tuple[str, ...] = ()

    @property
    def blocks(self) -> BlockList:
        """What has its weights in memory at one time."""
        return BlockList.of(self.model, without=self.whole, also=self.stops)

    def stopping_at(self, paths: Iterable[str]) -> BlockRunner:
        """A runner of the same model that gives these modules a turn of their own.

        Args:
            paths: module paths, none inside another, in a block or around one.
        """
        return replace(self, stops=tuple(paths))

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        if self.residence is not None:
            return self.residence.device
        parameter = next(self.model.parameters(), None)
        return parameter.device if parameter is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        if self.residence is not None:
            return self.residence.dtype
        parameter = next(self.model.parameters(), None)
        return parameter.dtype if parameter is not None else torch.get_default_dtype()

    def again(self, call: Callable[[], Answer], restart: Callable[[], None] | None = None) -> Answer:
        """What a call returns that runs the model; it begins again where a list of blocks must run as a whole.

        Args:
            call: must be free to be made again.
            restart: called before it is.
        """
        while True:
            try:
                return call()
            except PassesOnMoreError as error:
                path = error.path.rpartition(".")[0]
                if path in self.whole or (self.residence is not None and self.residence.in_use):
                    raise  # in use: whoever opened the session begins again
                self.whole[path] = str(error)
                if restart is not None:
                    restart()

    @contextmanager
    def session(self) -> Iterator[nn.Module]:
        """Inside, without gradients, the model may be called by any code: blocks load and free their weights."""
        with self._ready(), torch.no_grad():
            if self.residence is None:
                yield self.model
            else:
                with self.residence.calling(self.blocks):
                    yield self.model

    @contextmanager
    def whole_in_memory(self) -> Iterator[nn.Module]:
        """Inside, the module holds all its values, in parameters that can be trained.

        Where weights are elsewhere, those that :meth:`~.residence.Residence.keep` has named by then go to the store
        afterwards, and the module is empty again; values that are written to must be made private first, see
        :func:`~fxprune.runtime.tensors.made_private`.
        """
        with nullcontext() if self.residence is None else self.residence.whole():
            yield self.model

    def turns(
        self, feeds: Sequence[Feed], around: Around | None = None, *, room: int | None = None
    ) -> Generator[Turn, None, list[Any]]:
        """Run batches in step, without gradients; yields each block when all that wait for it can run.

        When the generator goes on, the block runs on the waiting batches with its present weights.

        Args:
            feeds: the batches.
            around: a context for the code of each batch.
            room: as in :func:`~.turns.turns`.

        Returns:
            The results of the feeds, as the value of the generator.

        Raises:
            PassesOnMoreError: a list of blocks must run as a whole; see :meth:`again`.
        """
        with self._ready(), closing(turns(self.model, self.blocks, feeds, self.loaded, around, room=room)) as steps:
            while True:
                with torch.no_grad():
                    try:
                        turn = next(steps)
                    except StopIteration as end:
                        results: list[Any] = end.value
                        return results
                yield turn

    def run(
        self, feeds: Sequence[Feed], around: Around | None = None, restart: Callable[[], None] | None = None
    ) -> list[Any]:
        """Run batches without gradients; returns the results of the feeds, which should be small.

        Weights that are elsewhere are read once for as many batches as may wait. Hooks on modules see each batch with
        its own values, and every module sees the batches in order.

        Args:
            feeds: the batches.
            around: a context for the code of each batch.
            restart: called when all begins again, to forget what hooks and contexts have gathered.
        """

        def attempt() -> list[Any]:
            with closing(self.turns(feeds, around, room=WAITING)) as steps, counting("blocks") as advance:
                while True:
                    try:
                        next(steps)
                        advance()
                    except StopIteration as end:
                        results: list[Any] = end.value
                        return results

        return self._one_by_one(feeds, around) if self.residence is None else self.again(attempt, restart)

    def _one_by_one(self, feeds: Sequence[Feed], around: Around | None) -> list[Any]:
        results = []
        with self._ready(), torch.no_grad():
            for number, feed in enumerate(counted(feeds, "batches")):
                with nullcontext() if around is None else around(number):
                    results.append(feed(self.model))
        return results

    def gradients(self, losses: Sequence[Loss], wanted: Sequence[str], receiver: GradientReceiver) -> list[float]:
        """Exact gradients of losses, each for itself, by reverse streaming.

        Where gradients of weights are wanted, all batches go forward before the first goes back. Otherwise only as many
        go together as :data:`HELD` allows; the weights are read again for the next.

        Args:
            losses: the batches; each is run once, and its blocks once more.
            wanted: names of the parameters whose gradients go to the receiver; the first name of a shared one.
            receiver: takes the gradients.

        Returns:
            The losses.

        Raises:
            FxpruneError: for a loss that is not a finite scalar.
        """

        def attempt() -> list[float]:
            values: list[float] = []
            together = len(losses) if wanted else 1
            here = nullcontext() if self.residence is not None else left_as_found(self.model, values=True)
            # Once: receivers may know the parameters by identity.
            with here, self._ready(), nullcontext(None) if wanted else counting("batches", len(losses)) as advance:
                while len(values) < len(losses):
                    found, kept = self._gradients(losses[len(values) :][:together], wanted, receiver)
                    values += found
                    if advance is not None:
                        advance(len(values))
                    if self.residence is not None and not wanted:  # otherwise nothing is read again: one is enough
                        together = max(1, HELD // max(1, kept // len(found)))
            return values

        return self.again(attempt, receiver.restart)

    def _gradients(
        self, losses: Sequence[Loss], wanted: Sequence[str], receiver: GradientReceiver
    ) -> tuple[list[float], int]:
        """The losses, and the bytes of hidden states that were kept."""
        known = dict(self.model.named_parameters())
        parameters = {name: known[name] for name in wanted}
        holders = self.blocks.holders(self.model)
        with self._differentiated(parameters), torch.enable_grad():
            states = OffloadedStates(None if self.residence is None else self.residence.states_shelf)
            tapes = [Tape(number, parameters, holders, receiver, states) for number in range(len(losses))]
            order, values = self._recorded(losses, tapes, receiver)
            kept = sum(tape.kept for tape in tapes)
            inside: dict[str, list[str]] = {}
            for name in wanted:
                (path,) = holders[name] if len(holders[name]) == 1 else (None,)
                inside.setdefault(path or "", []).append(name)
            early = [name for name in inside.get("", ()) if not any(tape.waits_for(name) for tape in tapes)]
            receiver.finished(early)
            walk_back(tapes, self.blocks, self.loaded, order, inside)
            done = {*early, *(name for path, _ in order for name in inside.get(path, ()))}
            receiver.finished([name for name in wanted if name not in done])
        return values, kept

    def _recorded(
        self, losses: Sequence[Loss], tapes: Sequence[Tape], receiver: GradientReceiver
    ) -> tuple[list[tuple[str, list[tuple[int, int]]]], list[float]]:
        """The forward, and the way back from each loss to the last block: turns in order, with the calls of each batch;
        and the losses."""
        order: list[tuple[str, list[tuple[int, int]]]] = []

        def ended(number: int, value: Any) -> float:
            loss = _scalar(value, number)
            tapes[number].watch()
            tapes[number].start(loss)  # at once, so that one batch's logits are in memory
            return float(loss.detach())

        steps = turns(self.model, self.blocks, losses, self.loaded, receiver.around, ended=ended)
        with closing(steps), counting("blocks forward") as advance:
            while True:
                try:
                    turn = next(steps)
                    advance()
                except StopIteration as end:
                    values: list[float] = end.value
                    return order, values
                except RuntimeError as error:
                    if order and "in-place operation" in str(error):
                        raise PassesOnMoreError(order[-1][0], "gives outputs that are written to") from error
                    raise
                order.append((turn.path, [tapes[one.number].forward(one, turn) for one in turn.waiting]))

    def twin(self) -> BlockRunner:
        """The model as it is now, to look back at: what is done to this one later does not change it.

        Values are shared; see :func:`~.tensors.twin`.
        """
        model = twin(self.model)
        residence = None if self.residence is None else self.residence.of(model, self.residence.store.snapshot())
        return BlockRunner(model, residence, whole=self.whole)

    def value(self, name: str) -> Tensor:
        """The present value of a tensor, detached, where the model runs and in its arithmetic."""
        if self.residence is None:
            return tensors_by_name(self.model)[name].detach()
        return self.residence.value(name)

    def changing(self, parameters: Iterable[Tensor]) -> None:
        """Make parameters of the model ready to be written to, while their values are in memory.

        They get memory of their own, because a file or a twin may have the same. What they hold when they leave memory
        is their value from then on.
        """
        changed = {id(parameter): parameter for parameter in parameters}
        made_private(changed.values())
        if self.residence is not None:
            self.residence.keep(name for name, held in self.model.named_parameters() if id(held) in changed)

    def loaded(self, path: str) -> AbstractContextManager[Any]:
        """A context in which the weights of a block are in memory."""
        return nullcontext() if self.residence is None else self.residence.block(path)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Inside, the model is in eval mode, and everything outside blocks is in memory."""
        modes = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with nullcontext() if self.residence is None else self.residence.outside(self.blocks):
                yield
        finally:
            for module in modes:
                module.training = True

    @contextmanager
    def _differentiated(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters require gradients; all do when there are none, so that activations have a graph."""
        states = [(parameter, parameter.requires_grad, parameter.grad) for parameter in self.model.parameters()]
        chosen = {id(parameter) for parameter in parameters.values()}
        try:
            for parameter, _, _ in states:
                if parameter.is_floating_point():
                    parameter.requires_grad_(not chosen or id(parameter) in chosen)
                parameter.grad = None
            yield
        finally:
            for parameter, flag, gradient in states:
                parameter.requires_grad_(flag)
                parameter.grad = gradient


def _scalar(value: Any, number: int) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise FxpruneError(f"loss {number} is not a scalar tensor but {what}", "return the mean over the batch")
    if not bool(value.isfinite()):
        raise FxpruneError(f"loss {number} is {value.item()}", "run in float32; check the calibration text")
    return value.reshape(())
