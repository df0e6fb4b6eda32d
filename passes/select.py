"""select: from scores and a ratio, choose the units that every group keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..ir import Indices, RequestError
from ..ir.graph import Graph
from ..ir.groups import Group, Kind
from .contributions import Contributions, Wanted

Scores = npt.NDArray[np.float64]

REASONS = 5
"""Largest number of reasons in an error message."""

REDUCTIONS = ("sum", "mean", "max", "prod", "first", "last")
HEADS = ("kv", "query", "off")


@dataclass(frozen=True)
class Scope:
    """Which groups a pruning pass may cut.

    Attributes:
        layers: range of layer indices, end exclusive; all layers when None.
        heads: ``kv`` cuts whole key-value heads with their query heads; ``query`` cuts query heads within each
            key-value head; ``off`` cuts no heads.
        widths: whether to cut inner widths, such as those of feed-forward layers.
        channels: whether to cut the width of the residual stream, which belongs to no layer.
        experts: whether to cut whole experts.
    """

    layers: tuple[int, int] | None = None
    heads: str = "kv"
    widths: bool = True
    channels: bool = False
    experts: bool = False

    @property
    def kinds(self) -> frozenset[Kind]:
        kinds = {"kv": {Kind.HEADS, Kind.KV_HEADS}, "query": {Kind.HEADS, Kind.QUERY_HEADS}, "off": set()}[self.heads]
        return frozenset(
            kinds
            | ({Kind.WIDTH} if self.widths else set())
            | ({Kind.CHANNELS} if self.channels else set())
            | ({Kind.EXPERTS} if self.experts else set())
        )

    def holds(self, group: Group) -> bool:
        """Whether this group is in the scope, frozen or not."""
        if group.kind not in self.kinds or group.units < 2:
            return False
        if group.kind is Kind.CHANNELS or self.layers is None:
            return True
        return group.layer is not None and self.layers[0] <= group.layer < self.layers[1]


def chosen_groups(groups: Iterable[Group], scope: Scope) -> tuple[list[Group], list[Group]]:
    """The groups in the scope that can be cut, and those in the scope that are frozen.

    Raises:
        RequestError: when no group can be cut, with the reasons.
    """
    asked = [group for group in groups if scope.holds(group)]
    free = [group for group in asked if group.frozen is None]
    frozen = [group for group in asked if group.frozen is not None]
    if not free:
        if frozen:
            reason = f"all {len(frozen)} chosen groups are frozen; {_reasons(frozen)}"
        else:
            where = f" in layers {scope.layers[0]}:{scope.layers[1]}" if scope.layers else ""
            reason = f"there is no {' or '.join(sorted(kind.value for kind in scope.kinds)) or 'prunable'} group{where}"
        raise RequestError(f"nothing to remove: {reason}", "list the groups with `fxprune trace MODEL`")
    return free, frozen


def _reasons(frozen: Iterable[Group]) -> str:
    """Why groups are frozen: each reason with an example, reasons with the most units first."""
    units: dict[str, int] = {}
    names: dict[str, str] = {}
    for group in frozen:
        reason = group.frozen or ""
        units[reason] = units.get(reason, 0) + group.units
        names.setdefault(reason, group.name)
    ordered = sorted(units, key=lambda reason: -units[reason])
    more = f"; and {len(ordered) - REASONS} more reasons" if len(ordered) > REASONS else ""
    return "; ".join(f"{names[reason]}: {reason}" for reason in ordered[:REASONS]) + more


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


def kept_count(size: int, ratio: float, multiple_of: int = 1, minimum: int = 1) -> int:
    """How many of ``size`` units are kept for a ratio, rounded up to a multiple, at least ``minimum``.

    Args:
        size: present number of units.
        ratio: share to remove, in [0, 1).
        multiple_of: the count is rounded up to a multiple of this, but not above ``size``.
        minimum: smallest count for any ratio.
    """
    exact = size * (1 - Fraction(str(ratio)))
    count = math.ceil(math.ceil(exact) / multiple_of) * multiple_of
    return max(minimum, min(size, count))


def step_of(group: Group, multiple_of: int = 1) -> int:
    """The number of units that a group keeps is a multiple of this; ``multiple_of`` applies to widths only."""
    return math.lcm(group.multiple, multiple_of if group.kind in (Kind.WIDTH, Kind.CHANNELS) else 1)


def best_units(group: Group, scores: Scores, count: int) -> Indices:
    """The ``count`` units with the highest scores, per parent unit in a nested group; ties go to the lower index.

    Returns:
        Sorted int64 unit numbers.
    """
    rows = scores.reshape(-1, group.size)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    units = order + np.arange(len(rows))[:, None] * group.size
    return np.sort(units.ravel()).astype(np.int64)


def select(
    groups: Sequence[Group], scores: Mapping[str, Scores], ratio: float, multiple_of: int = 1
) -> dict[str, Indices]:
    """Choose the units to keep with the same ratio for every group, so that groups of equal size stay equally wide.

    Args:
        groups: the groups to cut.
        scores: group name -> scores of its units.
        ratio: share to remove, in [0, 1).
        multiple_of: widths other than heads become multiples of this.

    Raises:
        RequestError: when the groups are so small that a ratio above 0 removes nothing.
    """
    keep = {}
    for group in groups:
        count = kept_count(group.size, ratio, step_of(group, multiple_of), group.minimum)
        keep[group.name] = best_units(group, scores[group.name], count)
    if ratio > 0 and all(len(keep[group.name]) == group.units for group in groups):
        sizes = ", ".join(sorted({f"{group.kind.value} {group.size}" for group in groups}))
        raise RequestError(
            f"nothing to remove: ratio {ratio} is less than one unit in groups of {sizes}"
            + (f" in multiples of {multiple_of}" if multiple_of > 1 else ""),
            "give a larger ratio" + (" or a smaller --multiple-of" if multiple_of > 1 else ""),
        )
    return keep
