"""The cost of a model at other widths: parameters, bytes and multiply-accumulates from the units that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir.axes import Atom, Axis, ConcatAxis, atoms_of
from ...ir.cost import macs, macs_of
from ...ir.graph import Arg, Graph, Op, Value
from ...ir.rules import contraction_of
from ..couple.coupling import Coupling, couple

Counts = Mapping[str, int]
"""Group name -> number of units that are kept; for a nested group, per parent unit."""


def dense_cost(graph: Graph, measure: str) -> int:
    """The present cost of a graph: parameters, bytes of parameters and buffers, or multiply-accumulates of one run."""
    if measure == "macs":
        return macs(graph)
    return sum(math.prod(value.shape) * size for value, size in _weighed(graph, measure))


@dataclass(frozen=True)
class Term:
    """A tensor or operator whose cost depends on the widths of groups."""

    value: Value
    factor: int
    op: Op | None = None


class Costs:
    """The cost of one analysed graph as a function of how many units its groups keep.

    Exact unless a position belongs to units of two occurrences of one atom; this never happens in a prunable group.

    Args:
        coupling: the analysis of the graph.
        names: the groups that may be cut; all other groups keep all their units.
        measure: ``params``, ``bytes`` or ``macs``.
    """

    def __init__(self, coupling: Coupling, names: Iterable[str], measure: str) -> None:
        self._coupling, self._graph, self._measure = coupling, coupling.graph, measure
        self._axes: Mapping[Value, Sequence[Axis]] = {**coupling.axes, **self._other_axes()}
        self._atoms = {name: coupling.groups[name].atom for name in names}
        self._cut = cut = set(self._atoms.values())
        self._terms: list[Term] = []
        touched: dict[int, list[Term]] = {atom: [] for atom in cut}
        for term in self._listed():
            values = (term.value,) if term.op is None else (*term.op.operands, *term.op.made)
            found = cut & {a.id for v in values for axis in self._axes[v] for a in atoms_of(axis)}
            if found:
                self._terms.append(term)
            for atom in found:
                touched[atom].append(term)
        self._touched = {name: touched[atom] for name, atom in self._atoms.items()}
        self._fixed = self.whole(self._graph) - sum(self._of(term, {}) for term in self._terms)

    def shown(self, cost: int) -> str:
        """A cost for a reader."""
        return f"{cost:,}"

    def _other_axes(self) -> Mapping[Value, Sequence[Axis]]:
        """Axes of values that the graph does not have, or that count otherwise than by their own."""
        return {}

    def _listed(self) -> list[Term]:
        """Everything that costs something."""
        if self._measure == "macs":
            return [Term(op.result, 1, op) for op in self._graph.ops if macs_of(op)]
        return [Term(value, size) for value, size in _weighed(self._graph, self._measure)]

    def whole(self, graph: Graph) -> int:
        """The cost of a graph as it is, for inputs of the coupling's extents. The graph may be another one than the
        coupling's, traced with other extents."""
        if graph is self._graph or self._measure != "macs":
            return dense_cost(graph, self._measure)
        other = couple(graph)
        shapes = like(other, self._graph)
        return sum(macs_of(sized(op, other.axes, shapes)) for op in graph.ops if contraction_of(op) is not None)

    def of(self, counts: Counts) -> int:
        """The total cost when these groups keep ``counts`` units and all other groups keep everything."""
        kept = {self._atoms[name]: count for name, count in counts.items()}
        return self._fixed + sum(self._of(term, kept) for term in self._terms)

    def saved(self, name: str, count: int) -> int:
        """The cost saved when one group is cut to ``count`` units and all other groups keep everything."""
        kept = {self._atoms[name]: count}
        return sum(self._of(term, {}) - self._of(term, kept) for term in self._touched[name])

    def _of(self, term: Term, kept: Mapping[int, int]) -> int:
        if term.op is None:
            return term.factor * math.prod(extent(axis, kept) for axis in self._axes[term.value])
        return macs_of(sized(term.op, self._axes, kept))


def like(coupling: Coupling, graph: Graph) -> dict[int, int]:
    """Atom id -> extent, so that the inputs of the coupling's graph get the shapes of the other graph's inputs."""
    found = {}
    for mine, theirs in zip(coupling.graph.inputs, graph.inputs, strict=True):
        for axis, size in zip(coupling.axes[mine], theirs.shape, strict=True):
            if isinstance(axis, Atom):
                found[axis.id] = size
    return found


def sized(op: Op, axes: Mapping[Value, Sequence[Axis]], kept: Mapping[int, int]) -> Op:
    """The operator with the shapes of its operands and results after some atoms keep fewer units (``kept``)."""

    def shape(value: Value) -> Value:
        return Value(value.name, value.dtype, tuple(extent(axis, kept) for axis in axes[value]))

    def resized(arg: Arg) -> Arg:
        if isinstance(arg, Value):
            return shape(arg)
        return tuple(resized(item) for item in arg) if isinstance(arg, tuple) else arg

    return replace(
        op, args=tuple(resized(arg) for arg in op.args), kwargs={k: resized(v) for k, v in op.kwargs.items()},
        results=tuple(None if v is None else shape(v) for v in op.results),
    )  # fmt: skip


def extent(axis: Axis, kept: Mapping[int, int]) -> int:
    """The extent of an axis after some atoms keep fewer units (``kept``: atom id -> how many)."""
    if isinstance(axis, Atom):
        return kept.get(axis.id, axis.size)
    if isinstance(axis, ConcatAxis):
        return sum(extent(part, kept) for part in axis.parts)
    return math.prod(extent(factor, kept) for factor in axis.factors)


def _weighed(graph: Graph, measure: str) -> list[tuple[Value, int]]:
    """The tensors that count for a measure, each with the cost of one element."""
    if measure == "params":
        return [(p.value, 1) for p in graph.parameters if not p.is_buffer]
    return [(p.value, itemsize(p.value.dtype.name)) for p in graph.parameters]


def itemsize(dtype: str) -> int:
    """Bytes of one element, from the number of bits at the end of a dtype name: ``f32``, ``bf16``, ``b8``."""
    return int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8
