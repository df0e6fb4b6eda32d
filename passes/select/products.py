"""Widths that are products, such as the groups of a convolution times the channels of each: one factor is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import networkx as nx

from ...ir.axes import Axis, ConcatAxis, ProductAxis, atoms_of
from ...ir.groups import Group, Kind


def one_factor(groups: Sequence[Group]) -> list[Group]:
    """The groups without those whose units are multiplied with the units of another one that stays.

    A ratio is a share of a width. If the groups of a convolution and the channels of each lost half, a quarter of the
    width would be left. Of two factors the one with more units is cut, because its count comes closest to a ratio; in
    a chain of such convolutions, the factors on one side of all products or those on the other.

    Args:
        groups: that could be cut, in order.

    Returns:
        Some of them, in order.
    """
    by_atom = {group.atom: group for group in groups if group.kind in (Kind.WIDTH, Kind.CHANNELS)}
    conflicts = nx.Graph()
    for group in by_atom.values():
        for member in group.members:
            conflicts.add_edges_from(pair for pair in _multiplied(member.axis) if by_atom.keys() >= set(pair))
    out: set[int] = set()
    for family in nx.connected_components(conflicts):
        out |= family - _chosen(conflicts.subgraph(family), by_atom)
    return [group for group in groups if group.atom not in out]


def _multiplied(axis: Axis) -> Iterator[tuple[int, int]]:
    """Pairs of atoms that are in two factors of a product within an axis."""
    if isinstance(axis, ProductAxis):
        for one, other in combinations(axis.factors, 2):
            yield from product((atom.id for atom in atoms_of(one)), [atom.id for atom in atoms_of(other)])
    for part in axis.factors if isinstance(axis, ProductAxis) else axis.parts if isinstance(axis, ConcatAxis) else ():
        yield from _multiplied(part)


def _chosen(conflicts: nx.Graph, by_atom: dict[int, Group]) -> set[int]:
    """Atoms no two of which are multiplied, and without which no product is left."""
    if nx.is_bipartite(conflicts):
        sides: tuple[set[int], set[int]] = nx.bipartite.sets(conflicts)
        # The smallest group of a side says how close it can come; the side with the first atom wins a tie.
        return max(sorted(sides, key=min), key=lambda side: min(by_atom[atom].size for atom in side))
    taken: set[int] = set()
    for atom in sorted(conflicts, key=lambda atom: (-by_atom[atom].size, atom)):
        if not taken & set(conflicts[atom]):
            taken.add(atom)
    return taken
