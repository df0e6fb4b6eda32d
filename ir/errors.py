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


class RequestError(FxpruneError):
    """A request that is not possible as given; raised before any work is done, wherever possible."""

    exit_code = 2
