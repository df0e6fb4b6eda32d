"""Signals that end a program: they end a run as Ctrl-C does, so that it cleans up after itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

SENT_AGAIN = 0.05
"""Seconds after which a signal is sent again whose exception Python has dropped."""

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
    hook = sys.unraisablehook

    def dropped(what: Any) -> None:
        if not _sent_again(what.exc_value, kept):
            hook(what)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in kept:
            signal.signal(number, signal.SIG_DFL)


def _sent_again(error: BaseException | None, numbers: Sequence[int]) -> bool:
    """Where a signal came while Python ran a finaliser, which may not raise, its exception is dropped: send it again.
    Returns whether that was it."""
    if not isinstance(error, Terminated) or threading.current_thread() is not threading.main_thread():
        return False
    for number in numbers:
        signal.signal(number, _end)
    timer = threading.Timer(SENT_AGAIN, os.kill, (os.getpid(), error.exit_code - 128))
    timer.daemon = True
    timer.start()
    return True


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    for other in ENDING:
        if signal.getsignal(other) is _end:
            signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)
