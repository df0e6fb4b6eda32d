"""Errors for the user: what is wrong, with the value, and what to do."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import TypeVar

FromLibrary = TypeVar("FromLibrary")

_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of Unicode that a terminal obeys, or does not show: controls, formats (which turn the direction of text),
halves of surrogate pairs, what is not assigned, and separators of lines."""

_JOINERS = "\u200c\u200d"
"""Formats that words of some languages are written with."""


def printable(text: str, *, lines: bool = False) -> str:
    """A text that came from a file or from a name, as it can be shown on a terminal: what is no character to be read is
    escaped as in Python, ``\\x1b``.

    Args:
        text: any text; a printable one is returned as it is.
        lines: whether ends of lines stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if (lines and char == "\n") or not _is_escaped(char) else char.encode("unicode_escape").decode()
        for char in text
    )


def _is_escaped(char: str) -> bool:
    return char not in _JOINERS and unicodedata.category(char) in _ESCAPED


def is_utf8(path: object) -> bool:
    """Whether a text or the name of a file can be written as UTF-8; bytes that are none come from Python as halves of
    surrogate pairs."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


class FxpruneError(Exception):
    """An error with a message for the user; the command line prints it and exits with ``exit_code``.

    Args:
        message: what is wrong, with the value that is wrong. Names in it may come from files: it is made printable.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = printable(message, lines=True)
        self.hint = printable(hint, lines=True)
        super().__init__(self.message)


class UnsupportedCall(Exception):
    """A call of an operator that its rule has no words for. The message says why; what the call touches is frozen."""


class ShapeError(UnsupportedCall):
    """A call whose shapes do not fit together, which no framework would run: a graph that holds it is not valid."""


class RequestError(FxpruneError):
    """A request that is not possible as given; raised before any work is done, wherever possible."""

    exit_code = 2


def ends_program(error: BaseException) -> bool:
    """Whether it is no error, but the wish to end a program, a coroutine or a greenlet. Libraries in Rust panic with a
    class that is no ``Exception`` either, and that is an error like any other."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return True
    # By name: importing these two takes time, and where they are not imported nobody raises them.
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return not names.isdisjoint(_ENDING)


_ENDING = {"greenlet.GreenletExit", "asyncio.exceptions.CancelledError"}


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second where the first only announces it by a colon; the name of
    its class where it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def class_and_first_line(error: BaseException) -> str:
    """``ValueError: the first line of its message``; the name of the class alone where it has no message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def last_line(text: str) -> str:
    """The last line that says something: of what Python writes about an error, the error itself. Empty when none."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad allocation",
    "bad_alloc",
    "failed to map segment",
)
"""What libraries say when there is none left; their errors have no common class."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short; it is not the fault of what was called."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY)


def guarded(
    work: Callable[[], FromLibrary],
    error_class: type[FxpruneError],
    message: str,
    hint: str,
    why: Callable[[BaseException], str] = first_line,
) -> FromLibrary:
    """Call a library whose errors on bad input have no common class, and convert any of them.

    Args:
        work: the call.
        error_class: of the error that is raised instead; the traceback is kept for ``--debug``.
        message: what does not work; the reason follows it.
        hint: what to do.
        why: the reason that an error gives.
    """
    try:
        return work()
    except FxpruneError:
        raise
    except BaseException as error:
        if ends_program(error) or lacks_memory(error):
            raise
        raise error_class(f"{message}: {why(error)}", hint) from error
