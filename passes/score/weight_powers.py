"""Sums of powers of weights, along every scored dimension: what magnitude scores are made of."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from ...ir.errors import RequestError
from ...runtime.threads import one_thread
from .position_scores import Slab, _summed, as_contributions, require_finite, slabs, wanted_parameters
from .units import Contributions, Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ..data import Weights


BLOCK_ELEMENTS, POWER_ELEMENTS = 1 << 22, 1 << 17
"""For sums of powers: how many elements a thread takes at once, and how many of them are converted to float64 at a
time, so that they fit in the processor's cache. The sums do not depend on the number of threads."""


def magnitude(model: Module, wanted: Wanted, p: int, weights: Weights | None = None) -> Contributions:
    """Sum of ``|w|**p`` over the other dimensions, without a root (LLM-Pruner's ``MagnitudeImportance``).

    Args:
        model: the model; its weights are used unless ``weights`` is given.
        wanted: what to score.
        p: the exponent, at least 1.
        weights: reads them one at a time, for a model on the meta device.

    Raises:
        RequestError: for ``p`` below 1, or when ``wanted`` does not fit the model.
        FxpruneError: for a weight that is not finite.
    """
    if p < 1:
        raise RequestError(f"magnitude: p={p} is below 1", "use p=1 (sum of absolute weights) or p=2 (sum of squares)")
    contributions: Contributions = {}
    memory = threading.local()
    with one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        chosen = wanted_parameters(model, wanted, stored=weights is not None)
        for name, weight in chosen.items() if weights is None else weights(chosen):
            sums = _power_sums(weight.detach(), wanted[name], p, pool, memory)
            require_finite(sums, f"the weights of {name!r} are not finite", "repair or download the checkpoint again")
            contributions.update(as_contributions(name, sums))
    return contributions


def _power_sums(
    weight: Tensor, dims: frozenset[int], p: int, pool: Executor, memory: threading.local
) -> dict[int, Tensor]:
    """Sums of ``|w|**p`` over all other dimensions, float64; several threads work on blocks of the weight.

    ``memory`` keeps one buffer per thread: allocating memory for every piece would take longer than the arithmetic.
    """

    def summed(block: Slab) -> dict[int, Tensor]:
        part = weight[block]
        buffer: Tensor | None = vars(memory).get("buffer")
        size = min(part.numel(), POWER_ELEMENTS)
        if buffer is None or buffer.numel() < size:
            buffer = vars(memory)["buffer"] = torch.empty(size, dtype=torch.float64, device=part.device)
        powers = ((piece, _power(part[piece], p, buffer)) for piece in slabs(tuple(part.shape), POWER_ELEMENTS))
        return _summed(part, dims, powers)

    sums = _summed(weight, dims, ())
    blocks = list(slabs(tuple(weight.shape), BLOCK_ELEMENTS))
    for block, parts in zip(blocks, pool.map(summed, blocks), strict=True):
        for dim, part in parts.items():
            sums[dim][block[dim]] += part
    return sums


def _power(values: Tensor, p: int, buffer: Tensor) -> Tensor:
    """``|values|**p``, written to a float64 buffer."""
    powers = buffer[: values.numel()].view(values.shape).copy_(values)
    if p == 2:
        return powers.square_()
    return powers.abs_() if p == 1 else powers.abs_().pow_(p)
