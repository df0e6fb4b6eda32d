"""Why two weights are coupled: the shortest chain of operators between them."""

from __future__ import annotations

import itertools

import networkx as nx

from ...ir.graph import Op, Value
from ...ir.groups import Group
from .coupling import Coupling


def why(coupling: Coupling, first: str, second: str) -> dict[str, list[tuple[Value, int, Op | None]]]:
    """The shortest chains of operators that couple two tensors, one for every group that holds both.

    Args:
        coupling: the analysis.
        first, second: parameter names; any name of a tied tensor.

    Returns:
        Group name -> places ``(value, dim, op)`` from the first tensor to the second, each with the operator that leads
        to it. Groups with few tensors come first. Empty when the tensors share no units.

    Raises:
        KeyError: for a name that is not a parameter.
    """
    named = {name: p for p in coupling.graph.parameters for name in (p.name, *p.aliases)}
    source, target = named[first], named[second]
    shared = [g for g in coupling.groups.values() if {source.name, target.name} <= g.tensors]
    return {
        group.name: _shortest(coupling.network, source.value, target.value, group)
        for group in sorted(shared, key=lambda group: len(group.tensors))
    }


def _shortest(network: nx.Graph, source: Value, target: Value, group: Group) -> list[tuple[Value, int, Op | None]]:
    starts = [node for node in network if node[0] is source and node[2] == group.atom]
    ends = [node for node in network if node[0] is target and node[2] == group.atom]
    _, path = nx.multi_source_dijkstra(network, set(starts), ends[0])
    for end in ends[1:]:
        path = min(path, nx.multi_source_dijkstra(network, set(starts), end)[1], key=len)
    ops = [None, *(network.edges[a, b]["op"] for a, b in itertools.pairwise(path))]
    return [(value, dim, op) for (value, dim, _), op in zip(path, ops, strict=True)]
