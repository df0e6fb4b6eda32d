"""A causal language model traced with its key-value cache as the result, to see which of its widths the cache has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..ir.cache import POSITIONS, CacheGraph
from ..ir.errors import FxpruneError
from ..runtime.model.keywords import caching, returned_cache
from .export import token_example, trace_model

_INSIDE = "model_with_cache"


class _ReturningCache(nn.Module):
    """Calls a model, tells what its cache is, and returns the tensors of it."""

    def __init__(self, model: nn.Module, tell: Callable[[Any], None]) -> None:
        super().__init__()
        setattr(self, _INSIDE, model)
        self.config = model.config
        self._tell = tell  # a trace leaves the attributes of a module as they were

    def forward(self, **inputs: Any) -> tuple[torch.Tensor, ...]:
        """The tensors of the cache, in the order of :func:`_held`."""
        _, cache = returned_cache(getattr(self, _INSIDE)(**inputs)) or ("", None)
        self._tell(cache)
        return tuple(tensor for _, _, tensor in _held(cache))


def trace_cache(model: nn.Module, context: int) -> CacheGraph:
    """Trace a causal language model for what it keeps of the tokens that it reads.

    Args:
        model: of transformers, in eval mode; on the meta device it takes no memory.
        context: tokens that are read. How many positions of them are kept is asked of the cache itself.

    Raises:
        FxpruneError: the model keeps no cache of layers, or cannot be traced with one.
    """
    example, extents = token_example(model)
    told: list[Any] = []
    outer = _ReturningCache(model, told.append).eval()
    traced = trace_model(outer, {**example, **caching(model, True)}, extents=extents)
    held = list(_held(told[-1])) if told else []
    if not held:
        raise FxpruneError(
            f"{type(model).__name__} returns no key-value cache whose tensors can be counted",
            "leave the context out of the target: memory=6GB counts the weights alone",
        )
    kept = {layer: _positions(type(told[-1]), model.config, layer, context) for layer in {at for at, _, _ in held}}
    lengths = tuple(kept[layer] if name in ("keys", "values") else None for layer, name, _ in held)
    graph = traced.graph
    named = [
        replace(
            parameter,
            name=parameter.name.removeprefix(f"{_INSIDE}."),
            aliases=tuple(alias.removeprefix(f"{_INSIDE}.") for alias in parameter.aliases),
        )
        for parameter in graph.parameters
    ]
    return CacheGraph(replace(graph, parameters=named), lengths)


def _held(cache: Any) -> Iterator[tuple[int, str, torch.Tensor]]:
    """The tensors of a cache: the number of the layer, the attribute, the tensor."""
    for at, layer in enumerate(getattr(cache, "layers", ())):
        for name, value in vars(layer).items():
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, torch.Tensor) and part.ndim > 0:
                    yield at, name, part


def _positions(kind: type[Any], config: Any, layer: int, context: int) -> int | None:
    """How many positions a layer of a cache keeps of a context; None where only the layer's own state can tell."""
    try:
        fresh = kind(config=config)
        states = torch.empty(1, 1, context, 1, device="meta")
        fresh.update(states, states.clone(), layer)
        return int(fresh.layers[layer].keys.shape[POSITIONS])
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError):
        return None
