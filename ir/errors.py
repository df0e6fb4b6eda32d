"""Errors a user can act on: what is wrong, with the value, and what to do."""

from __future__ import annotations


class FxpruneError(Exception):
    """A failure with a message for the user; the command line prints it and exits with ``exit_code``.

    Args:
        message: what is wrong, with the offending value.
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
    """A request that cannot be carried out as it was made; found before any work is done."""

    exit_code = 2
