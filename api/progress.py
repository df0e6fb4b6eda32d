"""How a long call reports what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""A function that is called with a short message whenever a new step begins."""


def silent(message: str) -> None:
    """Report nothing."""
    del message
