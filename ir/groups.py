"""Groups: an atom, and all dimensions of tensors that shrink when one of its units is removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .axes import Atom, Axis, ConcatAxis, ProductAxis, atoms_of
from .plan import Indices

Mask = npt.NDArray[np.bool_]


class Kind(Enum):
    """What the units of a group are, derived from the operators.

    ``heads``: attention heads, each with its own keys and values. ``kv_heads``: key-value heads with their query
    heads. ``query_heads``: the query heads of each key-value head. ``head_dim``: channels of a head. ``channels``: the
    width of a residual stream through several blocks. ``width``: an inner width, such as that of a feed-forward layer.
    ``experts``: whole experts of a mixture of experts. ``tokens``: the tokens of a vocabulary.
    """

    HEADS = "heads"
    KV_HEADS = "kv_heads"
    QUERY_HEADS = "query_heads"
    HEAD_DIM = "head_dim"
    CHANNELS = "channels"
    WIDTH = "width"
    EXPERTS = "experts"
    TOKENS = "tokens"


HEAD_KINDS = frozenset({Kind.HEADS, Kind.KV_HEADS, Kind.QUERY_HEADS})
"""The kinds of attention heads."""


class Role(Enum):
    """Whether a dimension of a tensor makes the units (OUT: rows of a weight, bias) or reads them (IN: columns)."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True)
class Occurrence:
    """One dimension of one tensor that holds units of a group.

    Attributes:
        tensor: parameter name; the first name of a tied tensor.
        dim: the dimension.
        axis: its axis term.
        role: whether it makes or reads the units.
    """

    tensor: str
    dim: int
    axis: Axis
    role: Role


@dataclass(frozen=True)
class Group:
    """Coupled units: removing a unit slices all members of the group.

    Attributes:
        name: unique and deterministic, ``<common module path>:<kind>``.
        atom: id of the atom in the solved axes.
        size: number of units; for a nested group, per parent unit.
        kind: what the units are.
        members: all occurrences in parameters and buffers.
        parent: for a nested group, the group that contains it; every parent unit keeps equally many units. Else None.
        frozen: why it is not prunable; None when it is.
        normalised: whether a normalisation runs over the units, so that removing a unit is not the same as zeroing it.
        layer: index of its layer; None when it spans several layers or is outside.
        multiple: the number of kept units must be a multiple of this, for kernels with aligned rows.
        minimum: smallest number of units to keep, such as the experts that a router picks for every token.
        ordered: why its units are not interchangeable, although each could go; None when they are.
    """

    name: str
    atom: int
    size: int
    kind: Kind
    members: tuple[Occurrence, ...]
    parent: Group | None = None
    frozen: str | None = None
    normalised: bool = False
    layer: int | None = None
    multiple: int = 1
    minimum: int = 1
    ordered: str | None = None

    @property
    def units(self) -> int:
        """Total number of units, over all parent units."""
        return self.size * (self.parent.size if self.parent else 1)

    def unit_map(self, axis: Axis) -> Indices:
        """The unit at every position of an axis; -1 for none.

        Returns:
            int64 ``[axis.size]``; units of a nested group have the number ``parent_unit * size + unit``.
        """
        own = positions(axis, self.atom)
        if self.parent is None:
            return own
        outer = positions(axis, self.parent.atom)
        return np.where((own < 0) | (outer < 0), -1, outer * self.size + own)

    @cached_property
    def tensors(self) -> frozenset[str]:
        """Names of its tensors."""
        return frozenset(member.tensor for member in self.members)


def positions(axis: Axis, atom: int) -> Indices:
    """The index of an atom's unit at every position of an axis; -1 outside the atom.

    Returns:
        int64 ``[axis.size]``.
    """
    if isinstance(axis, Atom):
        return np.arange(axis.size) if axis.id == atom else np.full(axis.size, -1)
    if isinstance(axis, ConcatAxis):
        return np.concatenate([positions(part, atom) for part in axis.parts])
    assert isinstance(axis, ProductAxis)
    found, outer, inner = np.full(axis.size, -1), 1, axis.size
    for factor in axis.factors:
        inner //= factor.size
        own = positions(factor, atom)
        if (own >= 0).any():
            found = np.maximum(found, np.tile(np.repeat(own, inner), outer))
        outer *= factor.size
    return found


def kept_positions(axis: Axis, groups: Mapping[int, Group], keep: Mapping[str, Indices]) -> Indices | None:
    """The positions of an axis that a plan keeps.

    Args:
        axis: the term.
        groups: atom id -> group, for the groups in ``keep``.
        keep: group name -> units to keep.

    Returns:
        Sorted int64 indices, or None when the plan does not touch the axis.
    """
    cut = [groups[atom.id] for atom in dict.fromkeys(atoms_of(axis)) if atom.id in groups]
    if not cut:
        return None
    alive = {group.atom: np.isin(np.arange(group.units), keep[group.name]) for group in cut}
    stays = _alive(axis, {group.atom: alive[group.atom] for group in cut if group.parent is None})
    for group in cut:
        if group.parent is None:
            continue
        units = group.unit_map(axis)
        if (units < 0).all():
            # A separate dimension: every kept parent unit uses equally many positions of it.
            parents = keep.get(group.parent.name, np.arange(group.parent.size))
            stays &= positions(axis, group.atom) < np.count_nonzero(keep[group.name] // group.size == parents[0])
        else:
            stays &= (units < 0) | alive[group.atom][units]
    return np.flatnonzero(stays)


def _alive(axis: Axis, alive: Mapping[int, Mask]) -> Mask:
    """Mask of the kept positions; a position with units of several atoms is kept if all of them are."""
    if isinstance(axis, Atom):
        return alive.get(axis.id, np.ones(axis.size, dtype=bool))
    if isinstance(axis, ConcatAxis):
        return np.concatenate([_alive(part, alive) for part in axis.parts])
    stays = np.ones(1, dtype=bool)
    for factor in axis.factors:
        stays = np.logical_and.outer(stays, _alive(factor, alive)).ravel()
    return stays
