"""The keyword by which a model is told whether to return its keys and values, which not every model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def caching(model: Callable[..., Any], wanted: bool) -> dict[str, bool]:
    """``use_cache`` for a call of a model; nothing where its forward takes no such keyword, since it keeps no cache.

    Args:
        model: a module, or a model of PEFT around one, or another callable.
        wanted: whether keys and values are to be returned.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(getattr(inner, "forward", inner)).parameters.values()
    takes = any(each.name == "use_cache" or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    return {"use_cache": wanted} if takes else {}
