"""Signals that end a program: they end a run as Ctrl-C does, so that it cleans up after itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Sent by ``kill``, by job schedulers and containers, and by a terminal that closes."""


class Terminated(KeyboardInterrupt):
    """A signal has asked the program to end.

    Attributes:
        exit_code: what a shell gives for a program that the signal has ended: 128 and its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block runs, the first of :data:`ENDING` raises :class:`Terminated` in it; further ones are ignored
    while it cleans up. A signal that is ignored, as ``nohup`` does it, stays ignored. Other threads do nothing here."""
    kept = []
    try:
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                kept.append(number)
                signal.signal(number, _end)
    except ValueError:  # not in the main thread, where alone Python handles signals
        kept.clear()
    try:
        yield
    finally:
        for number in kept:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    for other in ENDING:
        if signal.getsignal(other) is _end:
            signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)
