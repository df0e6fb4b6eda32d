"""The keywords that the forward of a model takes: not every model takes all that others do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def takes(model: Callable[..., Any], keyword: str) -> bool:
    """Whether a model can be called with a keyword.

    Args:
        model: a module, or a model of PEFT around one, or another callable.
        keyword: such as ``use_cache``.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(getattr(inner, "forward", inner)).parameters.values()
    return any(each.name == keyword or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def caching(model: Callable[..., Any], wanted: bool) -> dict[str, bool]:
    """``use_cache`` for a call of a model; nothing where it takes no such keyword, since it keeps no cache.

    Args:
        model: as for :func:`takes`.
        wanted: whether keys and values are to be returned.
    """
    return {"use_cache": wanted} if takes(model, "use_cache") else {}
