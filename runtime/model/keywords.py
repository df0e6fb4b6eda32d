"""The keywords that the forward of a model takes, and the name of its cache: not every model has those of others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def takes(model: Callable[..., Any], keyword: str) -> bool:
    """Whether a model can be called with a keyword.

    Args:
        model: a module, or a model of PEFT around one, or another callable.
        keyword: such as ``use_cache``.
    """
    parameters = _parameters(model)
    return keyword in parameters or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def _parameters(model: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Name -> parameter of the forward of a model."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(getattr(inner, "forward", inner)).parameters


def caching(model: Callable[..., Any], wanted: bool) -> dict[str, bool]:
    """``use_cache`` for a call of a model; nothing where it takes no such keyword, since it keeps no cache.

    Args:
        model: as for :func:`takes`.
        wanted: whether keys and values are to be returned.
    """
    return {"use_cache": wanted} if takes(model, "use_cache") else {}


_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""The arguments for a cache. Up to transformers 5.23, a model takes and returns ``past_key_values`` or
``cache_params``; from 5.24 on ``cache``. Code that a model brings keeps the argument that it was written with, while
the outputs of transformers that it returns bear the new name."""


def cache_argument(model: Callable[..., Any], returned: str) -> str:
    """The keyword by which a model takes back the cache that it has returned.

    Args:
        model: as for :func:`takes`.
        returned: the name of the cache among its outputs, from :func:`returned_cache`.
    """
    named = _parameters(model)
    if returned in named:
        return returned
    return next((name for name in _CACHE_ARGUMENTS if name in named), returned)


def returned_cache(output: Any) -> tuple[str, Any] | None:
    """The cache in what a model has returned, and the name of it there; None where there is none."""
    from transformers.generation.utils import ALL_CACHE_NAMES

    # Asked for an old name, an output of transformers gives what has the new one, and warns.
    held = dict(output) if isinstance(output, Mapping) else None
    for name in dict.fromkeys((*ALL_CACHE_NAMES, *_CACHE_ARGUMENTS)):
        found = getattr(output, name, None) if held is None else held.get(name)
        if found is not None:
            return name, found
    return None
