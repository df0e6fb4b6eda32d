"""Second moments of linear maps from their observed calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .least_squares import Moments
from .linear_maps import LinearMap
from .observed_calls import ObservedCall


def moments_of(calls: Iterable[ObservedCall]) -> dict[LinearMap, Moments]:
    """The moments of every linear map in some calls, bias included as the last input; empty for a map without tokens."""
    found: dict[LinearMap, Moments] = {}
    for at, x, wanted, _ in calls:
        if at not in found:
            found[at] = Moments.empty(at.unknowns, wanted.shape[1], x.device)
        found[at].add(x if at.beside is None else torch.cat([x, x.new_ones(len(x), 1)], 1), wanted)
    return found
