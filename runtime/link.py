"""What connects ranks: meetings in torch's key-value store, and collectives of its process groups.

Before every collective the ranks *meet*: each says in the store that it is here, and waits until all have. A rank that
fails says at the next meeting why, so that nobody waits for it; one that was killed does not come, and who waits for it
longer than the limit says in its place that it is gone. So no collective begins without all ranks, and an error is
known everywhere as soon as it is met.

Messages are pickles, as in ``torch.distributed`` itself: whoever can reach its port is trusted.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..ir.errors import FxpruneError, RequestError, class_and_first_line, first_line

START, GRACE, PAUSE = 300.0, 10.0, 0.02
"""Seconds: for all processes to start; for the others to take note of the end of one; between two looks for them."""

_COLLECTIVES = ("gloo", "NCCL", "ProcessGroup", "process group")
"""Words in the errors of collectives, which are not all of a class of their own."""

LinkKey = TypeVar("LinkKey", bound=Hashable)
LinkValue = TypeVar("LinkValue")


@dataclass(frozen=True)
class Message:
    """What a rank says at a meeting.

    Attributes:
        doing: what it is here for.
        value: what it brings.
        error: message, hint and exit code of the error that ended it; None for a rank that goes on.
        gone: whether others say in its place that it did not come.
        cut_off: whether it ends only because a collective broke.
    """

    doing: str = ""
    value: Any = None
    error: tuple[str, str, int] | None = None
    gone: bool = False
    cut_off: bool = False


class Link:
    """The connection of one rank with all others.

    Args:
        store: a store of torch.distributed that all ranks share, with no other keys in it.
        index: the number of this rank.
        count: how many there are.
        limit: seconds to wait for the others in one place.
    """

    def __init__(self, store: Any, index: int, count: int, limit: float) -> None:
        self.index, self.count, self.limit = index, count, limit
        self._store, self._number = store, 0
        self._groups: dict[str, Any] = {}
        self._failure: FxpruneError | None = None
        self._told_by_first = False
        self._gone: set[int] = set()

    def meet(self, doing: str, value: LinkValue | None = None) -> list[LinkValue]:
        """Wait until all ranks are here; returns what they bring, by rank.

        Raises:
            FxpruneError: a rank failed, did not come within the limit, or came for something else.
        """
        if self._failure is not None:
            raise self._failure
        number = self._number
        self._number += 1
        mine = self._say(number, Message(doing, value))
        if mine.gone:
            raise self._failed(f"rank {self.index} took more than {self.limit:.0f} s, and the others gave it up", _SLOW)
        said = self._said(number, doing, self.limit)
        if self._failure is not None:
            raise self._failure
        if number:
            self._store.delete_key(f"{number - 1}/{self.index}")  # all are here, so all have read it
        if others := {message.doing for message in said} - {doing}:
            raise self._failed(
                f"ranks have come apart: rank {self.index} wants {doing}, others want {', '.join(sorted(others))}",
                "this is a bug in fxprune or in a plug-in; please report it with the command",
            )
        return [message.value for message in said]

    def sum(self, tensor: Tensor, to: int | None = None) -> Tensor:
        """See :meth:`~.ranks.Ranks.sum`."""
        whole = _on_wire(tensor).to(torch.float64).contiguous()
        self.meet(f"sum of {list(tensor.shape)}" + ("" if to is None else f" to {to}"))
        if to is None:
            self._transfer("a sum", whole, lambda group: group.allreduce([whole], dist.AllreduceOptions()))
        else:
            options = dist.ReduceOptions()
            options.rootRank = to
            self._transfer("a sum", whole, lambda group: group.reduce([whole], options))
        return whole.to(tensor.dtype).to(tensor.device)

    def sum_all(self, tensors: Mapping[LinkKey, Tensor]) -> dict[LinkKey, Tensor]:
        """See :meth:`~.ranks.Ranks.sum_all`."""
        mine = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
        known: dict[LinkKey, tuple[tuple[int, ...], torch.dtype]] = {}
        for theirs in self.meet("sum of tensors", mine):
            for key, form in theirs.items():
                if known.setdefault(key, form) != form:
                    raise self._failed(f"ranks have different tensors of {key}: {known[key]} and {form}", _APART)
        # Over the CPU: a rank without a tensor does not know the device of those of the others.
        parts = [
            tensors[key].detach().cpu().double() if key in tensors else torch.zeros(shape, dtype=torch.float64)
            for key, (shape, _) in known.items()
        ]
        flat = torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)
        totals = self.sum(flat).split([part.numel() for part in parts])
        home = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        return {
            key: total.reshape(shape).to(dtype).to(tensors[key].device if key in tensors else home)
            for (key, (shape, dtype)), total in zip(known.items(), totals, strict=True)
        }

    def sum_arrays(self, arrays: Mapping[LinkKey, Any]) -> dict[LinkKey, Any]:
        """See :meth:`~.ranks.Ranks.sum_arrays`."""
        totals = self.sum_all({key: torch.from_numpy(array) for key, array in arrays.items()})
        return {key: total.numpy() for key, total in totals.items()}

    def broadcast(self, value: LinkValue, source: int) -> LinkValue:
        """See :meth:`~.ranks.Ranks.broadcast`."""
        if isinstance(value, Tensor):
            whole = _on_wire(value).contiguous()
            self.meet(f"tensor {list(value.shape)} from {source}")
            self._send(whole, source)
            if whole.data_ptr() != value.data_ptr():
                value.detach().copy_(whole)
            return value
        mine = pickle.dumps(value) if self.index == source else b""
        size = self.meet(f"object from {source}", len(mine))[source]
        held = torch.empty(size, dtype=torch.uint8)
        if self.index == source:
            held = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        self._send(held, source)
        if self.index == source:
            return value
        return pickle.loads(held.numpy().tobytes())  # nosec B301 # of a rank of this run, see above

    def _send(self, whole: Tensor, source: int) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = source
        raw = whole.reshape(-1).view(torch.uint8)  # all dtypes are the same to it
        self._transfer("a broadcast", raw, lambda group: group.broadcast([raw], options))

    def _transfer(self, what: str, tensor: Tensor, send: Callable[[Any], Any]) -> None:
        """Run a collective; all ranks have met for it."""
        if not tensor.numel():
            return
        try:
            send(self._group(tensor.device.type)).wait()
        except RuntimeError as error:
            raise self._broken(what, error) from error

    @contextmanager
    def through(self, what: str) -> Iterator[None]:
        """See :meth:`~.ranks.Ranks.through`."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(word in str(error) for word in _COLLECTIVES):
                raise self._broken(what, error) from error
            raise

    def _broken(self, what: str, error: RuntimeError) -> FxpruneError:
        """The failure that broke a collective: whoever failed says so at the next meeting, and whoever was killed does
        not come."""
        if self._failure is None:
            self._say(self._number, Message(cut_off=True))
            self._said(self._number, what, min(GRACE, self.limit))
        return self._failure or self._failed(f"{what} failed: {first_line(error)}", _STORE_HINT)

    def _group(self, device: str) -> Any:
        """The process group for tensors on a device, made by all ranks when they first need it."""
        if device not in self._groups:
            kind = dist.ProcessGroupGloo if device == "cpu" else getattr(dist, "ProcessGroupNCCL")  # noqa: B009
            store, span = (
                _room(f"group {device}", self._store),
                timedelta(seconds=self.limit),
            )
            self._groups[device] = kind(store, self.index, self.count, span)
        return self._groups[device]

    def _say(self, number: int, message: Message) -> Message:
        """Leave a message for a meeting, unless there is one in the name of this rank; returns what is there."""
        try:
            return _message(self._store.compare_set(f"{number}/{self.index}", "", _text(message)))
        except RuntimeError as error:
            raise self._failed(_NO_STORE, _STORE_HINT) from error

    def _wait(self, keys: Sequence[str], limit: float) -> bool:
        """Whether all keys are in the store, at the latest after ``limit`` seconds."""
        end, pause = time.monotonic() + limit, 0.0
        try:
            # Asked again and again: a wait inside the store could not be interrupted, and warns when its time is up.
            while not self._store.check(list(keys)):
                if time.monotonic() > end:
                    return False
                time.sleep(pause)
                pause = min(PAUSE, 2 * pause + PAUSE / 100)
        except RuntimeError as error:
            raise self._failed(_NO_STORE, _STORE_HINT) from error
        return True

    def _said(self, number: int, doing: str, limit: float) -> list[Message]:
        """The messages of a meeting, when all have come or after ``limit`` seconds; what ended a rank becomes the
        failure of this link."""
        keys = [f"{number}/{rank}" for rank in range(self.count)]
        if not self._wait(keys, limit):
            for key in keys:
                self._store.compare_set(key, "", _text(Message(gone=True)))  # wakes who waits for it too
        said = [_message(data) for data in self._store.multi_get(keys)]
        for rank, message in enumerate(said):
            if message.error is not None:
                text, hint, code = message.error
                self._failed(f"rank {rank} failed: {text}", hint, code)
                self._told_by_first = True
                return said
        for rank, message in enumerate(said):
            if message.gone:
                self._gone.add(rank)
                self._failed(f"rank {rank} was killed, or took more than {limit:.0f} s; waited for: {doing}", _SLOW)
                self._told_by_first = rank != 0
                return said
        return said

    def _failed(self, message: str, hint: str, code: int = FxpruneError.exit_code) -> FxpruneError:
        kind = RequestError if code == RequestError.exit_code else FxpruneError
        self._failure = kind(message, hint)
        self._failure.exit_code = code
        return self._failure

    def fail(self, error: BaseException) -> bool:
        """Tell the others of an error that ends this rank, unless it is one of theirs.

        Returns:
            Whether rank 0 tells the user about it.
        """
        told = self.index != 0 and self._told_by_first
        try:
            if self._failure is None:
                self._say(self._number, Message(error=_told(error)))
                told = self.index != 0 and not isinstance(error, KeyboardInterrupt) and self._wait(["heard"], GRACE)
            if self.index == 0:
                self._store.set("heard", "")
            self._part(GRACE)
        except (FxpruneError, RuntimeError):
            pass  # the store is gone, and with it whoever could listen
        return told

    def leave(self) -> None:
        """End the connection, when all ranks are done.

        Raises:
            FxpruneError: a rank failed, or did not come within the limit.
        """
        self.meet("end")
        self._part(self.limit)

    def _part(self, limit: float) -> None:
        """Rank 0 stays until the others are done with the store, which it may hold."""
        self._groups.clear()
        if self.index:
            self._store.set(f"left/{self.index}", "")
        else:
            self._wait([f"left/{rank}" for rank in range(1, self.count) if rank not in self._gone], limit)


_NO_STORE = "the rendezvous of the processes does not answer any more: the process that held it has ended"
_STORE_HINT = "see the messages of the other processes, and of torchrun"
_SLOW = "look for its last message, and for want of memory; a longer limit is FXPRUNE_RANK_TIMEOUT=SECONDS"
_APART = "this is a bug in fxprune or in a plug-in; please report it with the command"


def connect(index: int, count: int, limit: float) -> Link:
    """Meet the other ranks at the address in torchrun's environment variables.

    Args:
        index: the number of this rank.
        count: how many there are.
        limit: seconds to wait for the others in one place.

    Raises:
        RequestError: nobody answers there.
    """
    span = timedelta(seconds=min(START, limit))
    try:
        store, _, _ = next(iter(rendezvous("env://", index, count, timeout=span)))
        # One command after the other in the same processes: each has its own part of the store.
        run = store.add(f"fxprune/{index}", 1)
    except (RuntimeError, ValueError, OSError) as error:
        raise RequestError(
            f"no rendezvous with the other processes: {first_line(error)}",
            "start the command with torchrun, which holds it; check MASTER_ADDR and MASTER_PORT",
        ) from error
    return Link(
        _room(f"fxprune/{run}", store),
        index,
        count,
        limit,
    )


def _room(name: str, store: Any) -> Any:
    """A part of a store with keys of its own."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _told(error: BaseException) -> tuple[str, str, int]:
    if isinstance(error, FxpruneError):
        return error.message, error.hint, error.exit_code
    return class_and_first_line(error), "see the messages of that process", FxpruneError.exit_code


def _on_wire(tensor: Tensor) -> Tensor:
    """The values on the CPU, or where they are if that has collectives of its own."""
    return tensor.detach() if tensor.device.type in ("cpu", "cuda") else tensor.detach().cpu()


def _text(message: Message) -> str:
    return pickle.dumps(message).hex()  # the store compares text


def _message(data: bytes) -> Message:
    message: Message = pickle.loads(bytes.fromhex(data.decode()))  # nosec B301 # of a rank of this run
    return message
