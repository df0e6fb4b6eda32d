"""Errors for the user: what is wrong, with the value, and what to do."""

from __future__ import annotations


class FxpruneError(Exception):
    """An error with a message for the user; the command line prints it and exits with ``exit_code``.

    Args:
        message: what is wrong, with the value that is wrong.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnsupportedCall(Exception):
    """A call of an operator that its rule has no words for. The message says why; what the call touches is frozen."""


class ShapeError(UnsupportedCall):
    """A call whose shapes do not fit together, which no framework would run: a graph that holds it is not valid."""


class RequestError(FxpruneError):
    """A request that is not possible as given; raised before any work is done, wherever possible."""

    exit_code = 2


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
