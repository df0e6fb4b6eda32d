"""The intermediate representation: graphs, axes, operator rules, groups and plans. Does not use torch or files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import FxpruneError, RequestError

if TYPE_CHECKING:
    from .plan import Indices, Plan

__all__ = ["FxpruneError", "Indices", "Plan", "RequestError"]


def __getattr__(name: str) -> Any:
    # Errors are needed by everything that answers at once, and NumPy takes a fifth of a second.
    if name in ("Indices", "Plan"):
        from . import plan

        return getattr(plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
