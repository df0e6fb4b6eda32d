"""Second moments that several ranks have computed on their shares of the calibration data, as those of one process."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.ranks import Ranks
from .least_squares import Moments
from .linear_maps import LinearForm, LinearMap
from .observed_calls import Visit


def shared_moments(
    found: Mapping[LinearMap, Moments], visit: Visit, ranks: Ranks, *, everywhere: bool = False
) -> dict[LinearMap, tuple[int, Moments]]:
    """The moments of all ranks together, added up one after the other.

    Args:
        found: those of this rank; their memory is used for the sums.
        visit: where the linear maps are.
        ranks: who shares the data; all of them call this for the same consumers.
        everywhere: whether all ranks need all sums.

    Returns:
        For all linear maps that a rank has seen, in the same order on all: the rank that owns its moments, so that the
        work of solving them is even; and the moments, whose matrices are complete on their owner only unless
        ``everywhere``, and whose count is complete on all.
    """
    if ranks.count == 1:
        return {at: (0, moments) for at, moments in found.items()}
    mine = {at.form: (moments.count, moments.errors is not None) for at, moments in found.items()}
    counts: dict[LinearForm, int] = {}
    erring: set[LinearForm] = set()
    for theirs in ranks.gather(mine):
        for form, (count, errs) in theirs.items():
            counts[form] = counts.get(form, 0) + count
            erring.update([form] if errs else [])
    maps = {form: visit.named(form) for form in counts}
    costs = [float(at.unknowns**2 * (at.unknowns + form.outputs)) for form, at in maps.items()]
    shared: dict[LinearMap, tuple[int, Moments]] = {}
    for (form, at), owner in zip(maps.items(), ranks.owners(costs), strict=True):
        own = found.get(at) or Moments.empty(at.unknowns, at.weight.device)
        to = None if everywhere else owner
        errors = energy = None
        if form in erring:
            none = own.inputs.new_zeros(form.outputs, at.unknowns)
            errors = ranks.sum(none if own.errors is None else own.errors, to)
            energy = ranks.sum(none[:, 0] if own.energy is None else own.energy, to)
        shared[at] = owner, Moments(ranks.sum(own.inputs, to), errors, counts[form], energy)
    return shared
