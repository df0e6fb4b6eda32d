"""How a long call says what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with a few words whenever something new begins."""


def silent(message: str) -> None:
    """Say nothing."""
    del message
