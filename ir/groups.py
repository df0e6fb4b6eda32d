"""Groups: an atom and every place in every tensor that shrinks when one of its units goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .axes import Atom, Axis, Concat, Product, atoms_of
from .plan import Indices

Mask = npt.NDArray[np.bool_]


class Kind(Enum):
    """What the units of a group are, as the operators around them show.

    ``heads``: attention heads, each with its own keys and values. ``kv_heads``: key-value heads with their query
    heads. ``query_heads``: the query heads within each key-value head. ``head_dim``: channels of a head. ``channels``:
    a width that a residual stream carries through several blocks. ``width``: an inner width, such as a feed-forward
    layer's. ``experts``: whole experts of a mixture.
    """

    HEADS = "heads"
    KV_HEADS = "kv_heads"
    QUERY_HEADS = "query_heads"
    HEAD_DIM = "head_dim"
    CHANNELS = "channels"
    WIDTH = "width"
    EXPERTS = "experts"


class Role(Enum):
    """Whether a tensor's dimension makes the units (rows of a linear map, a bias) or takes them in (its columns)."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True)
class Occurrence:
    """One dimension of one tensor in which a group's units stand.

    Attributes:
        tensor: parameter name, the first one of a tied tensor.
        dim: the dimension.
        axis: its axis term.
        role: makes or consumes the units.
    """

    tensor: str
    dim: int
    axis: Axis
    role: Role


@dataclass(frozen=True)
class Group:
    """Units that live or die together.

    Attributes:
        name: unique and deterministic, ``<common module path>:<kind>``.
        atom: id of the atom in the solved axes.
        size: units; for a nested group, units within one parent unit.
        kind: what the units are.
        members: every occurrence in a parameter or persistent buffer.
        parent: the group whose units hold this one's, each of which keeps equally many of its own; None otherwise.
        frozen: why no unit may go; None when they may.
        normalised: a normalisation divides over the units, so that removing one is not the same as zeroing it.
        layer: index in the sequence of equal blocks it belongs to, None when it spans several or stands outside.
        multiple: how many units stay shall be a multiple of this, for kernels that need rows of whole machine words.
        minimum: of units that must stay, such as the experts that a router picks for every token.
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

    @property
    def units(self) -> int:
        """All units, over all units of the parent."""
        return self.size * (self.parent.size if self.parent else 1)

    def unit_map(self, axis: Axis) -> Indices:
        """For every position of an axis the unit that stands there, -1 where none does.

        Returns:
            int64 ``[axis.size]``; units of a nested group are numbered ``parent_unit * size + unit``.
        """
        own = positions(axis, self.atom)
        if self.parent is None:
            return own
        outer = positions(axis, self.parent.atom)
        return np.where((own < 0) | (outer < 0), -1, outer * self.size + own)

    @cached_property
    def tensors(self) -> frozenset[str]:
        """Names of the tensors it shrinks."""
        return frozenset(member.tensor for member in self.members)


def positions(axis: Axis, atom: int) -> Indices:
    """For every position of an axis the index of the atom's unit there, -1 where the atom does not reach.

    Returns:
        int64 ``[axis.size]``.
    """
    if isinstance(axis, Atom):
        return np.arange(axis.size) if axis.id == atom else np.full(axis.size, -1)
    if isinstance(axis, Concat):
        return np.concatenate([positions(part, atom) for part in axis.parts])
    assert isinstance(axis, Product)
    found, outer, inner = np.full(axis.size, -1), 1, axis.size
    for factor in axis.factors:
        inner //= factor.size
        own = positions(factor, atom)
        if (own >= 0).any():
            found = np.maximum(found, np.tile(np.repeat(own, inner), outer))
        outer *= factor.size
    return found


def kept_positions(axis: Axis, groups: Mapping[int, Group], keep: Mapping[str, Indices]) -> Indices | None:
    """The positions of an axis that stay under a plan.

    Args:
        axis: the term.
        groups: atom id -> its group, for the groups that ``keep`` cuts.
        keep: group name -> units that stay.

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
            # A dimension of its own, beside its parent's: each parent that stays fills equally many slots of it.
            parents = keep.get(group.parent.name, np.arange(group.parent.size))
            stays &= positions(axis, group.atom) < np.count_nonzero(keep[group.name] // group.size == parents[0])
        else:
            stays &= (units < 0) | alive[group.atom][units]
    return np.flatnonzero(stays)


def _alive(axis: Axis, alive: Mapping[int, Mask]) -> Mask:
    """Which positions stay when units of some atoms go; one that holds several units stays when all of them do."""
    if isinstance(axis, Atom):
        return alive.get(axis.id, np.ones(axis.size, dtype=bool))
    if isinstance(axis, Concat):
        return np.concatenate([_alive(part, alive) for part in axis.parts])
    stays = np.ones(1, dtype=bool)
    for factor in axis.factors:
        stays = np.logical_and.outer(stays, _alive(factor, alive)).ravel()
    return stays
