"""Second moments of linear maps from their observed calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .least_squares import Moments
from .linear_maps import LinearMap
from .observed_calls import ObservedCall


def moments_of(calls: Iterable[ObservedCall]) -> dict[LinearMap, Moments]:
    """The moments of every linear map in some calls, bias included as the last input; empty for one without tokens."""
    found: dict[LinearMap, Moments] = {}
    for at, x, wanted, present in calls:
        if at not in found:
            found[at] = Moments.empty(at.unknowns, x.device)
        inputs = x if at.beside is None else torch.cat([x, x.new_ones(len(x), 1)], 1)
        found[at].add(inputs, None if wanted is present else _precise(wanted) - _precise(present))
    return found


def _precise(values: Tensor) -> Tensor:
    """At least float32: the difference of two numbers that are nearly equal keeps few digits of a coarser type."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
