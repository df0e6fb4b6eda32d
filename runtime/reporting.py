"""How far long work has come: whoever does it counts, and whoever called may listen.

Nobody listens unless asked to, and then counting costs one look at a variable. Work within counted work is not told of:
one measure of how long something takes is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class Count:
    """Work that is under way.

    Attributes:
        unit: what is counted, in the plural.
        total: how many there are; None while that is not known.
        done: how many are done.
        loss: of the last training step; None where nothing is trained.
        first: how many were done when this work began, which went on from where another run was.
        started: when it began, in seconds of :func:`time.monotonic`.
        ended: whether it is over, done or not.
    """

    unit: str
    total: int | None
    done: int = 0
    loss: float | None = None
    first: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: bool = False

    @property
    def seconds_left(self) -> float | None:
        """As long as the rest will take if it takes as long as what is done; None while that cannot be said."""
        here = self.done - self.first
        if self.total is None or here <= 0:
            return None
        return (time.monotonic() - self.started) / here * max(0, self.total - self.done)


Listener = Callable[[Count], None]
"""Called with a count when it begins, whenever it moves on, and when it is over."""


@dataclass
class _Ear:
    """A listener, and whether it is being told of something."""

    listener: Listener
    busy: bool = False


_EAR: ContextVar[_Ear | None] = ContextVar("fxprune_ear", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """While the block runs, tell the listener of all counted work in it; with None, nobody."""
    token = _EAR.set(None if listener is None else _Ear(listener))
    try:
        yield
    finally:
        _EAR.reset(token)


Advance = Callable[..., None]
"""Takes nothing, or ``done``, how many are done by now, ``total`` and ``loss``."""


@contextmanager
def counting(unit: str, total: int | None = None) -> Iterator[Advance]:
    """While the block runs, what it does is counted.

    Args:
        unit: what is counted, in the plural: ``windows``.
        total: how many there are.

    Yields:
        A function to call after each of them.
    """
    ear = _EAR.get()
    if ear is None or ear.busy:
        yield not_counted
        return
    count, listener = Count(unit, total), ear.listener

    def advance(done: int | None = None, *, total: int | None = None, loss: float | None = None) -> None:
        if done is not None and not count.done:
            count.first = done - 1
        count.done = count.done + 1 if done is None else done
        count.total = count.total if total is None else total
        count.loss = loss
        listener(count)

    ear.busy = True
    listener(count)
    try:
        yield advance
    finally:
        ear.busy, count.ended = False, True
        listener(count)


def counted(items: Iterable[Item], unit: str, total: int | None = None) -> Iterator[Item]:
    """The items, each counted when the next one is asked for.

    Args:
        items: what is gone through.
        unit: what they are, in the plural.
        total: how many there are, where they cannot be asked.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with counting(unit, total) as advance:
        for item in items:
            yield item
            advance()


def not_counted(done: int | None = None, *, total: int | None = None, loss: float | None = None) -> None:
    """Takes what :data:`Advance` takes, where nobody listens."""
    del done, total, loss
