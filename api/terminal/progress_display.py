"""What the terminal shows of work under way: a bar where there is a terminal, else a line from time to time."""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ...ir.errors import RequestError, printable
from ...runtime.reporting import Count, listening

if TYPE_CHECKING:
    from rich.console import Console

SHORT = 2.0
"""Seconds of work of which no bar is shown."""

LINE_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


_FIRST = "starting"


class Loudness(IntEnum):
    """How much is told on stderr besides warnings and errors.

    Attributes:
        QUIET: nothing.
        USUAL: how far long work has come.
        VERBOSE: every step too, and what the one before it took.
    """

    QUIET = 0
    USUAL = 1
    VERBOSE = 2


class Told:
    """Keeps what is going on, and says it in one line.

    Args:
        say: takes a line.
        steps: whether every step gets a line, with the seconds of the one before.
    """

    def __init__(self, say: Callable[[str], None], *, steps: bool) -> None:
        self._say, self._steps = say, steps
        self.message, self.count = _FIRST, None
        self._since = time.monotonic()

    message: str
    count: Count | None

    def step(self, message: str) -> None:
        """A new step begins."""
        now, before, self.message = time.monotonic(), self.message, printable(message)
        took, self._since = now - self._since, now
        if self._steps:
            if took >= 0.1 and before != _FIRST:
                self._say(f"{before}: {took:.1f} s")
            self._say(self.message)

    def moved(self, count: Count) -> None:
        """Counted work has moved on."""
        self.count = None if count.ended else count

    @property
    def line(self) -> str:
        """What is going on: ``taylor (1 of 2): 12 of 64 batches, loss 2.31, 1 min left``."""
        return f"{self.message}: {figures}" if (figures := self.figures) else self.message

    @property
    def figures(self) -> str:
        """How far it has come; empty where nothing is counted."""
        count = self.count
        if count is None:
            return ""
        of = f" of {count.total:,}" if count.total is not None else ""
        parts = [f"{count.done:,}{of} {count.unit}"]
        parts += [f"loss {count.loss:.4g}"] if count.loss is not None else []
        parts += [f"{_duration(count.seconds_left)} left"] if count.seconds_left is not None else []
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def shown(loudness: Loudness, log: str | None = None, *, bar: bool = True) -> Iterator[Callable[[str], None]]:
    """While the block runs, show on stderr what is going on.

    Args:
        loudness: how much of it.
        log: a file to which every step is appended too, with the time, and lines as where there is no terminal.
        bar: whether there is a bar on a terminal, where nobody else may print.

    Yields:
        A function that is told of every new step.

    Raises:
        RequestError: the file cannot be written to.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with ExitStack() as stack:
        told: list[Told] = []
        if log is not None:
            file = stack.enter_context(_opened(log))
            told.append(stack.enter_context(_in_lines(lambda text: _write(file, text), steps=True)))
        if bar and console.is_terminal and loudness > Loudness.QUIET:
            told.append(stack.enter_context(_as_a_bar(console, steps=loudness is Loudness.VERBOSE)))
        elif loudness > Loudness.QUIET:
            told.append(stack.enter_context(_in_lines(_print, steps=loudness is Loudness.VERBOSE)))

        def moved(count: Count) -> None:
            for one in told:
                one.moved(count)

        def step(message: str) -> None:
            for one in told:
                one.step(message)

        stack.enter_context(listening(moved if told else None))
        yield step


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _opened(log: str) -> IO[str]:
    try:
        return Path(log).expanduser().open("a", encoding="utf-8", errors="backslashreplace")
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"--log-file {log}: {why}", "give a file in a directory that you can write to") from None


def _write(file: IO[str], text: str) -> None:
    stamp = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(f"{stamp} {text}\n")
    file.flush()


@contextmanager
def _in_lines(say: Callable[[str], None], *, steps: bool) -> Iterator[Told]:
    """Say a line every :data:`LINE_EVERY` seconds, from a thread of its own: a step may be one long call."""
    told, end = Told(say, steps=steps), threading.Event()

    def repeat() -> None:
        while not end.wait(LINE_EVERY):
            say(told.line)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        end.set()
        thread.join()


@contextmanager
def _as_a_bar(console: Console, *, steps: bool) -> Iterator[Told]:
    """A line that says what is going on, with a bar for what takes longer than :data:`SHORT`."""
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    told = Told(lambda text: console.print(Text(text)), steps=steps)
    spinner = Spinner("dots")

    def line() -> Any:
        count = told.count
        grid = Table.grid(padding=(0, 1))
        # What is not known to be long is only named. Brackets in a name are no markup.
        if count is None or count.total is None or time.monotonic() - count.started < SHORT:
            grid.add_row(spinner, Text(told.message, no_wrap=True, overflow="ellipsis"))
            return grid
        bar = ProgressBar(total=max(1, count.total), completed=count.done, width=max(5, min(30, console.width // 5)))
        figures = Text(told.figures, no_wrap=True)
        grid.add_row(spinner, bar, figures, Text(told.message, no_wrap=True, overflow="ellipsis"))
        return grid

    with Live(get_renderable=line, console=console, transient=True, refresh_per_second=4):
        yield told
