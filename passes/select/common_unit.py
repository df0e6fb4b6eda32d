"""common_unit: the scores of different groups on one scale, so that a budget can be divided among the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.groups import Group
from .allocate import Losses
from .costs import Costs


def standardized(losses: Mapping[str, Losses], groups: Sequence[Group]) -> dict[str, Losses]:
    """The losses for scores with mean 0 and standard deviation 1 in every group.

    FLAP does this with the scores of columns (arXiv 2312.11983, section "adaptive structure search"); here it is done
    with those of units.

    Args:
        losses: group name -> summed scores of the 0, 1, ... lowest-scored units of every parent unit, ``[size + 1]``.
        groups: the groups to cut.
    """
    found = {}
    for group in groups:
        parents = group.units // group.size
        scores = np.diff(losses[group.name]) / parents
        deviation = scores.std(ddof=1) if len(scores) > 1 else 0.0
        even = (scores - scores.mean()) / (deviation if deviation > 0 else 1.0)
        found[group.name] = np.concatenate([np.zeros(1), parents * even.cumsum()])
    return found


def with_one_threshold(losses: Mapping[str, Losses], groups: Sequence[Group], costs: Costs) -> dict[str, Losses]:
    """Losses with which the best allocation removes, in all groups, the units whose scores are below one threshold.

    A threshold ``t`` has the smallest sum of ``cost * (score - t)`` over the units that go. So among all choices that
    save equally much it has the smallest sum of ``cost * score``: that is the loss of a unit here. To keep losses from
    being negative, the smallest score is taken from all; that adds the same to all choices that save equally much.

    Args:
        losses: as for :func:`standardized`; scores of all groups have one scale and may be negative.
        groups: the groups to cut.
        costs: what they cost.
    """
    scores = {group.name: np.diff(losses[group.name]) * (group.size / group.units) for group in groups}
    lowest = min((float(found.min()) for found in scores.values()), default=0.0)
    result = {}
    for group in groups:
        fewest = min(max(1, group.minimum), group.size - 1)
        each = costs.saved(group.name, fewest) / (group.size - fewest) if group.size > 1 else 0.0
        result[group.name] = np.concatenate([np.zeros(1), ((scores[group.name] - lowest) * each).cumsum()])
    return result
