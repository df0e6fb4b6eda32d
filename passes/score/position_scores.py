"""Contributions: one number for every position of every scored dimension of every parameter.

The scores of all groups are computed from these vectors, which are computed once. ``select`` adds up the positions of a
unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import torch

from ...ir.errors import FxpruneError, RequestError
from .units import Contributions, Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter


Slab = tuple[slice, ...]

SLAB_ELEMENTS = 1 << 17
"""Largest number of elements of a parameter that are processed at once."""


def wanted_parameters(model: Module, wanted: Wanted, *, stored: bool = False) -> dict[str, Parameter]:
    """The parameters that ``wanted`` names, in its order.

    Args:
        model: whose parameters.
        wanted: what to score.
        stored: whether the values are in a checkpoint, so that parameters on the meta device are allowed.

    Raises:
        RequestError: when it is empty, or names a parameter or dimension that does not exist, or a parameter without
            floating-point values.
    """
    if not any(wanted.values()):
        raise RequestError("there is no parameter to score", "choose a range of layers with prunable groups")
    known = dict(model.named_parameters())
    chosen = {}
    for name, dims in wanted.items():
        parameter = known.get(name)
        if parameter is None:
            raise RequestError(f"the model has no parameter {name!r}", "use the first name of a shared parameter")
        if not all(0 <= dim < parameter.dim() for dim in dims):
            raise RequestError(
                f"{name!r} of shape {list(parameter.shape)} has no dimensions {sorted(dims)}", "count them from 0"
            )
        if parameter.is_meta and not stored:
            raise RequestError(f"{name!r} has no values to score", "load the weights: a config alone is not enough")
        if parameter.is_complex():
            raise RequestError(
                f"{name!r} holds {parameter.dtype}, and scores are of real numbers",
                "keep it as two real weights, its real and its imaginary part",
            )
        if not parameter.is_floating_point():
            raise RequestError(f"{name!r} holds {parameter.dtype}", "give a model that is not quantised")
        if dims:
            chosen[name] = parameter
    return chosen


def slabs_of(tensor: Tensor) -> Iterator[Slab]:
    """Pieces whose float64 temporaries are small compared to the tensor."""
    return slabs(tuple(tensor.shape), min(SLAB_ELEMENTS, max(1024, tensor.numel() // 512)))


def slabs(shape: tuple[int, ...], limit: int) -> Iterator[Slab]:
    """Cut a tensor of this shape into pieces of at most ``limit`` elements, each indexed in every dimension."""
    if not shape:
        yield ()
        return
    row = prod(shape[1:])
    if row > limit:
        for index in range(shape[0]):
            for rest in slabs(shape[1:], limit):
                yield (slice(index, index + 1), *rest)
        return
    rows = max(1, limit // max(1, row))
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])), *(slice(0, size) for size in shape[1:]))


def position_sums(tensor: Tensor, dims: frozenset[int], saliency: Callable[[Slab], Tensor]) -> dict[int, Tensor]:
    """Reduce a saliency to one vector per dimension, piece by piece, without ever storing all of it.

    Args:
        tensor: a tensor of the saliency's shape and device.
        dims: the dimensions to keep, one vector each.
        saliency: computes the saliency of one slab, float64.

    Returns:
        dimension -> float64 ``[shape[dimension]]``: the sum over all other dimensions.
    """
    return _summed(tensor, dims, ((slab, saliency(slab)) for slab in slabs_of(tensor)))


def _summed(tensor: Tensor, dims: frozenset[int], parts: Iterable[tuple[Slab, Tensor]]) -> dict[int, Tensor]:
    sums = {dim: torch.zeros(tensor.shape[dim], dtype=torch.float64, device=tensor.device) for dim in sorted(dims)}
    for slab, part in parts:
        for dim, total in sums.items():
            others = [other for other in range(part.dim()) if other != dim]
            total[slab[dim]] += part.sum(dim=others) if others else part
    return sums


def require_finite(sums: Mapping[int, Tensor], message: str, hint: str) -> None:
    """Check for NaN and infinity: each sum covers every element of a saliency, so one of them shows it.

    Raises:
        FxpruneError: with ``message`` and ``hint``, when a sum is not finite.
    """
    if not all(bool(total.isfinite().all()) for total in sums.values()):
        raise FxpruneError(message, hint)


def as_contributions(name: str, sums: Mapping[int, Tensor]) -> Contributions:
    """The sums of one parameter as contributions: float64 arrays by (parameter name, dimension)."""
    return {(name, dim): total.cpu().numpy() for dim, total in sums.items()}
