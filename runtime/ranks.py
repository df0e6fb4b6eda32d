"""Several processes that share the work of one command, as torchrun starts them; a single one does without.

Every rank runs the same passes on a model of its own. What is summed over calibration data is computed by each rank on
its share of the data and added up; what is decided or measured by time is that of rank 0, which alone writes and
speaks. With one process nothing here imports ``torch.distributed``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from ..ir.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from .link import Link

    Floats = npt.NDArray[np.float64]

LIMIT = 1800.0
"""Seconds that a rank waits for the others in one place, as in torch.distributed."""

LIMIT_VARIABLE = "FXPRUNE_RANK_TIMEOUT"
"""The environment variable that sets another limit."""

ELSEWHERE = "rank 0 tells the user"
"""A note on an exception that this process need not print, since rank 0 does."""

_START = "start the command with torchrun --nproc-per-node N -m fxprune, or unset RANK and WORLD_SIZE"


class Sliceable(Protocol):
    """A sequence or a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


TensorKey = TypeVar("TensorKey", bound=Hashable)
Part = TypeVar("Part", bound=Sliceable)
Sent = TypeVar("Sent")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that share the work.

    All ranks must call the same methods in the same order, but for :meth:`share` and :meth:`owners`, which need no
    other rank. A rank that fails makes every later call fail on the others, with its error.

    Attributes:
        index: the number of this process, from 0.
        count: how many there are.
        link: what connects them; None for a single one.
    """

    index: int = 0
    count: int = 1
    link: Link | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0: it decides, writes and speaks."""
        return self.index == 0

    def share(self, items: Part, what: str = "calibration windows") -> Part:
        """The items of this rank: one of ``count`` consecutive parts whose sizes differ by one at most.

        The parts are consecutive, so that batches hold the same windows as with one process where sizes are round, and
        sums over them are added up in nearly the same order.

        Args:
            items: a sequence, or a tensor that is cut along its first dimension; equal on all ranks.
            what: their name in the error message.

        Raises:
            RequestError: with fewer items than ranks; on all ranks.
        """
        if self.count == 1:
            return items
        if len(items) < self.count:
            raise RequestError(
                f"{len(items)} {what} cannot be shared among {self.count} processes",
                f"start at most {max(1, len(items))}, or give more",
            )
        first, last = (len(items) * index // self.count for index in (self.index, self.index + 1))
        part: Part = items[first:last]
        return part

    def owners(self, costs: Sequence[float]) -> tuple[int, ...]:
        """For every piece of work the rank that does it: the dearest first, each to the rank with the least so far.

        Args:
            costs: of the pieces, in any unit; equal on all ranks.
        """
        loads, found = [0.0] * self.count, [0] * len(costs)
        for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
            found[piece] = loads.index(min(loads))
            loads[found[piece]] += costs[piece]
        return tuple(found)

    def sum(self, tensor: torch.Tensor, to: int | None = None) -> torch.Tensor:
        """The sum of the ranks' tensors of one shape and dtype, added up in float64; equal to the bit on all ranks.

        Args:
            tensor: the part of this rank; its memory may be used for the sum, so that only the result counts after.
            to: the only rank that gets the sum, when others need none; what they get is of no use.

        Raises:
            FxpruneError: a rank failed, or did not answer within the limit.
        """
        return tensor if self.link is None else self.link.sum(tensor, to)

    def sum_all(self, tensors: Mapping[TensorKey, torch.Tensor]) -> dict[TensorKey, torch.Tensor]:
        """The sums of tensors by key, sent as one. A rank may lack some keys, such as experts that no token reached.

        Args:
            tensors: the part of this rank; tensors of one key have the same shape and dtype on all ranks that have it.

        Returns:
            All keys of all ranks: those of rank 0 in its order, then what others have besides.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        return dict(tensors) if self.link is None else self.link.sum_all(tensors)

    def sum_arrays(self, arrays: Mapping[TensorKey, Floats]) -> dict[TensorKey, Floats]:
        """As :meth:`sum_all`, of NumPy arrays."""
        return dict(arrays) if self.link is None else self.link.sum_arrays(arrays)

    def union(self, names: Iterable[TensorKey]) -> set[TensorKey]:
        """What any rank names.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        return {name for theirs in self.gather(list(names)) for name in theirs}

    def own_keys(self, keys: Iterable[TensorKey]) -> list[TensorKey]:
        """Those of the keys of this rank that no rank before it has: each key that any rank has is one rank's own.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        mine = list(keys)
        before = {key for theirs in self.gather(mine)[: self.index] for key in theirs}
        return [key for key in mine if key not in before]

    def broadcast(self, value: Sent, source: int = 0) -> Sent:
        """The value of one rank, on all.

        Args:
            value: a tensor, which has the same shape and dtype on all ranks and is overwritten; or any object that can
                be pickled, which only ``source`` needs to give.
            source: the rank whose value it is.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        return value if self.link is None else self.link.broadcast(value, source)

    def gather(self, value: Sent) -> list[Sent]:
        """The values of all ranks, by rank; for small objects.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        return [value] if self.link is None else self.link.meet("gather", value)

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        if self.link is not None:
            self.link.meet("barrier")

    def by_first(self, call: Callable[[], Sent]) -> Sent:
        """What the call returns on rank 0, which alone makes it, on all ranks; an object that can be pickled.

        Raises:
            FxpruneError: as :meth:`sum`; on rank 0 whatever the call raises.
        """
        if self.link is None:
            return call()
        found: Any = call() if self.first else None
        return self.link.broadcast(found, 0)

    @contextmanager
    def through(self, what: str) -> Iterator[None]:
        """Inside runs code with collectives of its own, such as a Trainer. Where one of them breaks because a rank
        failed or was killed, that rank's error is raised.

        Args:
            what: it does, for the message.

        Raises:
            FxpruneError: as :meth:`sum`.
        """
        with nullcontext() if self.link is None else self.link.through(what):
            yield

    def agree(self, facts: Mapping[str, str]) -> None:
        """Check that something is the same on all ranks.

        Args:
            facts: what it is -> its value in this process.

        Raises:
            RequestError: on all ranks, with the first rank that differs from rank 0, and in what.
            FxpruneError: as :meth:`sum`.
        """
        first, *others = self.gather(dict(facts))
        for rank, theirs in enumerate(others, 1):
            names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
            if names:
                told = "; ".join(
                    f"{name} is {theirs.get(name, 'missing')} instead of {first.get(name, 'missing')}"
                    for name in names[:3]
                )
                more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
                raise RequestError(
                    f"rank {rank} differs from rank 0: {told}{more}",
                    "give all processes the same command, files and versions",
                )

    @classmethod
    def over(cls, link: Link) -> Self:
        """The ranks at the ends of a link."""
        return cls(link.index, link.count, link)


ALONE = Ranks()
"""A process that shares its work with no other."""


def number_of_ranks() -> int:
    """How many processes torchrun's environment variables tell of; 1 where they say nothing that can be read."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() else 1


def ranks_here() -> tuple[int, int]:
    """The number of this process among those on this machine, and how many these are, by torchrun's environment."""
    if number_of_ranks() <= 1:
        return 0, 1
    local, count = (os.environ.get(name, "") for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    index = int(local) if local.isdecimal() else 0
    return index, max(index + 1, int(count) if count.isdecimal() else 1)


def is_first_rank() -> bool:
    """Whether this process speaks to the user, by torchrun's environment variables alone."""
    return number_of_ranks() <= 1 or os.environ.get("RANK", "0") == "0"


def ranks_from_environment() -> Ranks:
    """The ranks that torchrun's environment variables tell of, connected; a single one where there are none.

    ``FXPRUNE_RANK_TIMEOUT`` is the number of seconds that a rank waits for the others before it gives up.

    Raises:
        RequestError: the variables are incomplete or no numbers, or nobody answers at the address that they give.
    """
    if "RANK" not in os.environ and number_of_ranks() <= 1:
        return ALONE
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    there = [name for name in needed if os.environ.get(name)]
    if missing := [name for name in needed if name not in there]:
        raise RequestError(f"{', '.join(there)} set, but not {', '.join(missing)}: torchrun sets all of them", _START)
    index, count = _number("RANK"), _number("WORLD_SIZE", least=1)
    if index >= count:
        raise RequestError(f"RANK={index} is not below WORLD_SIZE={count}", _START)
    limit = _number(LIMIT_VARIABLE, least=1) if os.environ.get(LIMIT_VARIABLE) else LIMIT
    if count == 1:
        return ALONE
    from .link import connect

    return Ranks.over(connect(index, count, limit))


def _number(variable: str, least: int = 0) -> int:
    text = os.environ[variable]
    if not text.isdecimal() or int(text) < least:
        hint = f"give seconds, such as {LIMIT_VARIABLE}={LIMIT:.0f}" if variable == LIMIT_VARIABLE else _START
        raise RequestError(f"{variable}={text} is not a whole number of at least {least}", hint)
    return int(text)


@contextmanager
def processes() -> Iterator[Ranks]:
    """The ranks of this run, for as long as the block runs. An error in the block ends it on all ranks.

    Raises:
        RequestError: as :func:`ranks_from_environment`.
        FxpruneError: another rank failed; with its error, and as :class:`RequestError` if it was one.
    """
    ranks = ranks_from_environment()
    if ranks.link is None:
        yield ranks
        return
    try:
        yield ranks
        ranks.link.leave()
    except BaseException as error:
        if ranks.link.fail(error):
            error.add_note(ELSEWHERE)
        raise
