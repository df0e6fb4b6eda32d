"""Scores of units from scores of positions: which positions are wanted, and how they are reduced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from ...ir.graph import Graph
from ...ir.groups import Group
from ..data import Scores

Wanted = Mapping[str, frozenset[int]]
"""Parameter name (the first one, if modules share it) -> the dimensions to score."""


Contributions = dict[tuple[str, int], npt.NDArray[np.float64]]
"""(parameter name, dimension) -> float64 vector ``[shape[dimension]]``."""


def wanted(groups: Iterable[Group], graph: Graph) -> Wanted:
    """The parameter dimensions that the scores of the groups need, without buffers, which have no gradient."""
    buffers = {parameter.name for parameter in graph.parameters if parameter.is_buffer}
    dims: dict[str, set[int]] = {}
    for group in groups:
        for member in group.members:
            if member.tensor not in buffers:
                dims.setdefault(member.tensor, set()).add(member.dim)
    return {name: frozenset(found) for name, found in dims.items()}


def unit_scores(group: Group, contributions: Contributions, reduce: str) -> Scores:
    """The importance of every unit of a group.

    For every member, the contributions of all positions of a unit are added (the rows of a head, both rotary halves),
    so that a key-value head is scored together with its query heads. Then ``reduce`` combines the members (LLM-Pruner,
    arXiv 2305.11627, section 3.2).

    Args:
        group: the group.
        contributions: vectors of its members; members without one are left out.
        reduce: how members are combined: ``sum``, ``mean``, ``max``, ``prod``, or ``first`` or ``last`` in model order.

    Returns:
        float64 ``[group.units]``.
    """
    rows = []
    for member in group.members:
        vector = contributions.get((member.tensor, member.dim))
        if vector is None:
            continue
        units = group.unit_map(member.axis)
        there = units >= 0
        rows.append(np.bincount(units[there], weights=vector[there], minlength=group.units))
    stacked = np.stack(rows)
    if reduce == "first":
        return stacked[0]
    if reduce == "last":
        return stacked[-1]
    reducers: dict[str, Callable[..., Scores]] = {"sum": np.sum, "mean": np.mean, "max": np.max, "prod": np.prod}
    return reducers[reduce](stacked, axis=0)
