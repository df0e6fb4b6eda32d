"""Forward passes without gradients, and the logits of whatever a model returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...runtime.model.keywords import cache_argument, caching, returned_cache
from ...runtime.streaming.turns import Feed


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Inside, no gradients, and a module is in eval mode; its mode is restored afterwards."""
    training = isinstance(model, torch.nn.Module) and model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


def reading(ids: torch.Tensor, *, cache: bool = False) -> Feed:
    """What runs a model of transformers on token ids ``[B, L]``, for hooks to see it."""

    def feed(model: torch.nn.Module) -> None:
        model(input_ids=ids, **caching(model, cache))

    return feed


def logits_of(model: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[B, L, V]`` of token ids ``[B, L]``, without a key-value cache."""
    out = model(input_ids=ids.to(device_of(model)), **_options(model))
    logits: torch.Tensor = out if isinstance(out, torch.Tensor) else out.logits
    return logits


Decoding = tuple[dict[str, Any], torch.Tensor | None]
"""What a model needs to go on: the cache, by the keyword that takes it, or all tokens where it keeps none."""


def decoded(
    model: Callable[..., Any], ids: torch.Tensor, state: Decoding | None = None
) -> tuple[torch.Tensor, Decoding]:
    """Logits ``[B, L, V]`` of further token ids ``[B, L]`` of a model of transformers, and the state after them.

    Args:
        model: on any device.
        ids: the tokens that have not been read.
        state: after those before; None at the beginning.
    """
    cache, before = state or ({}, None)
    ids = ids.to(device_of(model))
    read = ids if before is None else torch.cat([before, ids], 1)
    out = model(input_ids=read, **caching(model, True), **cache)
    returned = returned_cache(out)
    found = {} if returned is None else {cache_argument(model, returned[0]): returned[1]}
    return out.logits[:, -ids.shape[1] :], (found, None if found else read)


def _options(model: Callable[..., Any]) -> dict[str, Any]:
    from transformers import PreTrainedModel

    return caching(model, False) if isinstance(model, PreTrainedModel) else {}


def device_of(model: Callable[..., Any]) -> torch.device:
    """Where a model computes; the CPU for what is no module, or holds no parameter."""
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return parameter.device if parameter is not None else torch.device("cpu")
