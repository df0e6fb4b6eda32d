"""Second moments that several ranks have computed on their shares of the calibration data, as those of one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...runtime.ranks import Ranks
from .dense_and_pruned import DenseAndPruned, LinearMap
from .least_squares import Moments


@dataclass(frozen=True)
class _Form:
    """What a rank that no token of a linear map has reached needs to know of it.

    Attributes:
        tensor, expert: as in :class:`~.batches.LinearCall`.
        outputs: number of its outputs.
        bias: name of the parameter that is or holds its bias; None without one.
    """

    tensor: str
    expert: int | None
    outputs: int
    bias: str | None


def shared_moments(
    found: Mapping[LinearMap, Moments], pairs: DenseAndPruned, ranks: Ranks, *, everywhere: bool = False
) -> dict[LinearMap, tuple[int, Moments]]:
    """The moments of all ranks together, added up one after the other.

    Args:
        found: those of this rank; their memory is used for the sums.
        pairs: where the linear maps are.
        ranks: who shares the data; all of them call this for the same consumers.
        everywhere: whether all ranks need all sums.

    Returns:
        For all linear maps that a rank has seen, in the same order on all: the rank that owns its moments, so that the
        work of solving them is even; and the moments, whose matrices are complete on their owner only unless
        ``everywhere``, and whose count is complete on all.
    """
    if ranks.count == 1:
        return {at: (0, moments) for at, moments in found.items()}
    names = {id(parameter): name for name, parameter in pairs.pruned.model.named_parameters()}
    mine = {
        _Form(at.tensor, at.expert, moments.targets.shape[1], _bias(at, names)): moments.count
        for at, moments in found.items()
    }
    counts: dict[_Form, int] = {}
    for theirs in ranks.gather(mine):
        for form, count in theirs.items():
            counts[form] = counts.get(form, 0) + count
    maps = {form: _map(form, pairs) for form in counts}
    costs = [float(at.unknowns**2 * (at.unknowns + form.outputs)) for form, at in maps.items()]
    shared: dict[LinearMap, tuple[int, Moments]] = {}
    for (form, at), owner in zip(maps.items(), ranks.owners(costs), strict=True):
        own = found.get(at) or Moments.empty(at.unknowns, form.outputs, at.weight.device)
        to = None if everywhere else owner
        shared[at] = owner, Moments(ranks.sum(own.inputs, to), ranks.sum(own.targets, to), counts[form])
    return shared


def _bias(at: LinearMap, names: Mapping[int, str]) -> str | None:
    if at.bias is None:
        return None
    return names[id(at.bias if at.bias._base is None else at.bias._base)]


def _map(form: _Form, pairs: DenseAndPruned) -> LinearMap:
    bias: torch.Tensor | None = None
    if form.bias is not None:
        bias = pairs.pruned.model.get_parameter(form.bias)
        bias = bias if form.expert is None else bias[form.expert]
    return pairs.named(form.tensor, form.expert, bias)
