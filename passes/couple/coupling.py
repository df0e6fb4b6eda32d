"""couple: solve the axes of a graph and find the groups of units that must be removed together."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx

from ...ir.axes import Atom, Axis, ConcatAxis, ProductAxis, Solution, atoms_of
from ...ir.errors import UnsupportedCall
from ...ir.graph import Graph, Op, Parameter, Value
from ...ir.groups import Group, Kind, Occurrence, Role
from ...ir.rules import AS_IT_IS, Equations, contraction_of, follow_positions, picked_from, rule_table
from .head_axes import head_channels
from .inner_widths import InnerWidths
from .token_places import TokenPlaces
from .turned_weights import only_turns, turned_weights

Place = tuple[Value, int]
"""A dimension of a value."""

NAMED_MARK = "tokens"
"""The mark of atoms whose units are tokens."""

VALUES = -1
"""Used in place of a dimension when the integers in a tensor name units, instead of its positions."""


@dataclass(frozen=True)
class Coupling:
    """The dependency analysis of one graph.

    Attributes:
        graph: what was analysed.
        axes: every value -> the axis term of each of its dimensions.
        groups: name -> group, in the order of the parameters.
        unknown: operators without a rule; all their axes are frozen.
        positions: integer tensors whose values are positions of an axis -> that axis.
    """

    graph: Graph
    axes: Mapping[Value, tuple[Axis, ...]]
    groups: Mapping[str, Group]
    unknown: tuple[Op, ...] = ()
    positions: Mapping[Value, Axis] = field(default_factory=dict)

    def axis(self, value: Value, dim: int) -> Axis:
        """The axis of a dimension; for ``VALUES``, the axis that the integers in the tensor count along."""
        return self.positions[value] if dim == VALUES else self.axes[value][dim]

    @cached_property
    def by_atom(self) -> Mapping[int, Group]:
        return {group.atom: group for group in self.groups.values()}

    @property
    def prunable(self) -> list[Group]:
        """Groups that are not frozen."""
        return [group for group in self.groups.values() if group.frozen is None]

    @cached_property
    def network(self) -> nx.Graph:
        """The occurrences of atoms, connected by the operators that equate them.

        Nodes are ``(value, dim, atom)`` for atoms that occur in a parameter; edges carry the operator as ``op``. The
        dimension is ``VALUES`` where the integers of a router name units.
        Each connected component is a coupled group.
        """
        network = nx.Graph()
        atoms = set(self.by_atom)
        for parameter in self.graph.parameters:
            network.add_nodes_from(self._nodes(parameter.value, atoms))
        for op in self.graph.ops:
            first: dict[int, tuple[Value, int, int]] = {}
            for value in (*op.operands, *op.made):
                for node in self._nodes(value, atoms):
                    anchor = first.setdefault(node[2], node)
                    if anchor != node:
                        network.add_edge(anchor, node, op=op)
                    else:
                        network.add_node(node)
        return network

    def _nodes(self, value: Value, atoms: set[int]) -> list[tuple[Value, int, int]]:
        places = list(enumerate(self.axes[value]))
        if value in self.positions:
            places.append((VALUES, self.positions[value]))
        return [
            (value, dim, atom.id) for dim, axis in places for atom in dict.fromkeys(atoms_of(axis)) if atom.id in atoms
        ]


def couple(graph: Graph, tokens: TokenPlaces | None = None) -> Coupling:
    """Analyse a graph.

    The rule of every operator states equations between the axes of its operands and results; a unifier solves them. An
    operator without a rule freezes all its axes. Axes that reach an input or output of the model are frozen too. The
    running time is linear in the number of operators.

    Args:
        graph: what is analysed.
        tokens: where it has tokens, when these may go; by default the axis is frozen, since inputs and outputs count
            along it.
    """
    eq = Equations()
    unknown = _state(graph, eq, tokens)
    order = [*(p.value for p in graph.parameters), *graph.constants, *graph.inputs]
    values = list(dict.fromkeys([*order, *graph.all_values()]))
    solution = eq.axes.solve(axis for value in values for axis in eq.of(value))
    axes = {value: tuple(solution.term(axis) for axis in eq.of(value)) for value in values}
    positions = {value: solution.term(axis) for value, axis in eq.positions.items()}
    named = {atom.id for axis in eq.named for atom in atoms_of(solution.term(axis))}
    return Coupling(graph, axes, _groups(graph, axes, solution, _minima(eq, solution), named), unknown, positions)


def _name_tokens(eq: Equations, tokens: TokenPlaces) -> None:
    """One axis for the rows of all tables and heads, along which the inputs count."""
    axis = eq.of(tokens.tables[0])[0]
    eq.tie_all([axis] * len(tokens.tables + tokens.heads), [eq.of(v)[0] for v in tokens.tables + tokens.heads])
    eq.positions |= dict.fromkeys(tokens.inputs, axis)
    eq.named.add(axis)


def _state(graph: Graph, eq: Equations, tokens: TokenPlaces | None) -> tuple[Op, ...]:
    unknown = []
    if tokens is not None:
        _name_tokens(eq, tokens)
    for value in graph.inputs:
        eq.freeze(eq.of(value), f"input of the model, %{value.name}")
    for op in graph.ops:
        eq.op = op
        rule = rule_table().get(op.packet)
        if rule is None:
            unknown.append(op)
            eq.freeze_call(op, f"no rule for {op.packet}")
            continue
        try:
            rule.couple(eq, op)
            follow_positions(eq, op)
            if rule.resize is not None:
                rule.resize(op, AS_IT_IS)
        except UnsupportedCall as odd:
            eq.freeze_call(op, f"an unusual call: {odd}")
        except Exception as odd:  # whatever a rule raises: such a call costs coverage, never correctness
            eq.freeze_call(op, f"an unusual call: {type(odd).__name__}: {odd}")
    eq.op = None
    named = {eq.axes.find(axis) for axis in eq.named}
    for value in graph.outputs:
        fixed = (axis for axis in eq.of(value) if eq.axes.find(axis) not in named)
        eq.freeze(fixed, f"output of the model, %{value.name}")
        if value in eq.positions:
            eq.freeze([eq.positions[value]], f"output of the model, %{value.name}")
    return tuple(unknown)


def _minima(eq: Equations, solution: Solution) -> dict[int, int]:
    """Atom -> number of units that must be kept, so that its axes keep the minimum number of positions.

    Where a router picks some groups of experts first, and then experts in those, only the experts of that many groups
    can be picked (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """
    least = [(solution.term(axis), count) for axis, count in eq.least]
    picks = {term.id: count for term, count in least if isinstance(term, Atom)}
    minima: dict[int, int] = {}
    for term, count in least:
        open_to_picks = 1
        for atom in atoms_of(term):
            share = atom.size / term.size if isinstance(term, ProductAxis) else 1
            if isinstance(term, ProductAxis) and atom is term.factors[-1]:
                share = 1 / open_to_picks
            open_to_picks *= min(atom.size, picks.get(atom.id, atom.size))
            minima[atom.id] = max(minima.get(atom.id, 1), min(atom.size, math.ceil(count * share)))
    return minima


def _groups(
    graph: Graph,
    axes: Mapping[Value, tuple[Axis, ...]],
    solution: Solution,
    minima: Mapping[int, int],
    named: Set[int],
) -> dict[str, Group]:
    roles = _roles(graph, axes)
    members: dict[int, list[Occurrence]] = defaultdict(list)
    read = {value for op in graph.ops for value in op.operands}
    for parameter in graph.parameters:
        if parameter.value not in read:  # a buffer for folded operators only: its constants are sliced instead
            continue
        for dim, axis in enumerate(axes[parameter.value]):
            for unit in dict.fromkeys(atoms_of(axis)):
                role = roles.get((parameter.value, dim), Role.IN)
                members[unit.id].append(Occurrence(parameter.name, dim, axis, role))
    held = [axis for parameter in graph.parameters for axis in axes[parameter.value]]
    held += [axis for value in _constants(graph) for axis in axes[value]]
    parents, inside, repeated = _parents(held)
    frozen = dict(solution.frozen)
    for squared in repeated:
        frozen.setdefault(squared, "the units occur twice in one product")
    for atom, reason in _lonely(graph, axes, members).items():
        if atom not in named:
            frozen.setdefault(atom, reason)
    for atom in named:
        solution.marks.setdefault(atom, set()).add(NAMED_MARK)
    heads = {atom for atom in members if "heads" in solution.marks.get(atom, ())}
    channels = head_channels(graph, axes)
    for atom in members.keys() - heads:
        if inside[atom] & heads or atom in channels:  # without a fused attention, no operator marks it
            solution.marks.setdefault(atom, set()).add("head_dim")
    naming = _Naming(solution, _stacked(graph, axes), minima, InnerWidths(graph, axes))
    return _name(members, parents, frozen, naming)


def _constants(graph: Graph) -> list[Value]:
    used = {value for op in graph.ops for value in op.operands}
    folded = [value for op in graph.folded for value in op.made]
    return [value for value in (*graph.constants, *folded) if value in used]


def _roles(graph: Graph, axes: Mapping[Value, tuple[Axis, ...]]) -> dict[Place, Role]:
    """Role of each weight dimension: OUT if its atoms are in the operator's result, IN if they are summed over."""
    turned = turned_weights(graph)
    roles: dict[Place, Role] = {}
    for op in graph.ops:
        leaves = [value for value in op.operands if value in turned]
        if not leaves or only_turns(op, turned):
            continue
        alive = {atom.id for value in op.made for axis in axes[value] for atom in atoms_of(axis)}
        for value in leaves:
            contracted = _contracted(op, value)
            for dim, axis in enumerate(axes[value]):
                makes = dim not in contracted and all(atom.id in alive for atom in atoms_of(axis))
                place = turned[value].parameter, turned[value].dims[dim]
                roles.setdefault(place, Role.OUT if makes else Role.IN)
    return roles


ROW = 8
"""Kernels for grouped matrix products, such as torch's, need rows of 16 bytes: 8 values of a 16-bit dtype."""


def _contracted(op: Op, weight: Value) -> set[int]:
    """The dimensions of its weight that an operator sums over; none where the value is not the operator's weight. One
    that names no weight has as many of them as it multiplies parameters.

    They take units in even where these live on in the result because a residual adds them again.
    """
    contraction = contraction_of(op)
    if contraction is None or (contraction.weight and contraction.weight_of(op) is not weight):
        return set()
    return contraction.taken_in(op, weight)


def _lonely(
    graph: Graph, axes: Mapping[Value, tuple[Axis, ...]], members: Mapping[int, list[Occurrence]]
) -> dict[int, str]:
    """Atoms that no linear map makes, and that nothing else ties -> reason to freeze them: those in a single dimension
    of a single tensor, and features of buffers that maps take in."""
    known = ((op, contraction_of(op)) for op in graph.ops)
    weights = {contraction.weight_of(op) for op, contraction in known if contraction is not None}
    maps = {parameter.name for parameter in graph.parameters if parameter.value in weights}
    buffers = {parameter.name for parameter in graph.parameters if parameter.is_buffer}
    computed = {atom.id for value in _constants(graph) for axis in axes[value] for atom in atoms_of(axis)}
    found: dict[int, str] = {}
    for atom, held in members.items():
        stored = next((member.tensor for member in held if member.tensor in buffers), "")
        takers = [member for member in held if member.tensor not in buffers]
        if len(held) == 1 and held[0].tensor not in maps:  # longer inputs would read more of them, or they are tokens
            found[atom] = f"positions of {held[0].tensor}"
        elif len(held) == 1 and held[0].role is Role.IN and atom in computed:  # the module's code computes them again
            found[atom] = f"features of a constant that {held[0].tensor} takes in"
        elif stored and takers and all(taker.role is Role.IN and taker.tensor in maps for taker in takers):
            found[atom] = f"features of the buffer {stored} that {takers[0].tensor} takes in"
    return found


def _stacked(graph: Graph, axes: Mapping[Value, tuple[Axis, ...]]) -> set[int]:
    """Atoms of weights that hold one linear map per expert, where an index picks the expert's linear map."""
    leaves = {parameter.value for parameter in graph.parameters}
    picked = [value for op in graph.ops if (value := picked_from(op)) is not None and value in leaves]
    held = [axis for value in picked for axis in axes[value][1:]]
    return {atom.id for axis in held for atom in atoms_of(axis)}


def _parents(terms: Iterable[Axis]) -> tuple[dict[int, set[int]], dict[int, set[int]], set[int]]:
    """Atom -> atoms to its left in a product, in every occurrence; the same in any occurrence; repeated atoms."""
    above: dict[int, set[int]] = {}
    anywhere: dict[int, set[int]] = defaultdict(set)
    repeated: set[int] = set()

    def walk(axis: Axis, outer: tuple[int, ...]) -> None:
        if isinstance(axis, Atom):
            if axis.id in outer:
                repeated.add(axis.id)
            above[axis.id] = above[axis.id] & set(outer) if axis.id in above else set(outer)
            anywhere[axis.id] |= set(outer)
        elif isinstance(axis, ConcatAxis):
            for part in axis.parts:
                walk(part, outer)
        else:
            for factor in axis.factors:
                walk(factor, outer)
                outer = (*outer, *(atom.id for atom in atoms_of(factor)))

    for term in dict.fromkeys(terms):
        walk(term, ())
    return above, anywhere, repeated


@dataclass(frozen=True)
class _Naming:
    """What kinds and names of groups follow from, besides their members."""

    solution: Solution
    stacked: Set[int]
    minima: Mapping[int, int]
    inner: InnerWidths


def _name(
    members: Mapping[int, list[Occurrence]],
    parents: Mapping[int, set[int]],
    frozen: Mapping[int, str],
    naming: _Naming,
) -> dict[str, Group]:
    solution = naming.solution
    heads = {atom for atom in members if "heads" in solution.marks.get(atom, ())}
    experts = {atom for atom in members if "experts" in solution.marks.get(atom, ())}
    nested = {atom: next(iter(parents[atom] & alike), None) for alike in (heads, experts - heads) for atom in alike}
    with_children = {parent for parent in nested.values() if parent is not None}
    groups: dict[str, Group] = {}
    by_atom: dict[int, Group] = {}
    for atom in sorted(members, key=lambda a: (nested.get(a) is not None, a)):
        marks = solution.marks.get(atom, set())
        path, layer = _common(member.tensor for member in members[atom])
        spans = layer is None
        if spans and not any(held.id in heads for member in members[atom] for held in atoms_of(member.axis)):
            marks = marks - {"head_dim"}  # attention with one head, as wide as the residual stream
        kind = _kind(atom, marks, nested, with_children, spans=spans)
        # An element of a list of modules holds what is inside it; elsewhere the ways of data say what is inside.
        if kind is Kind.CHANNELS and atom not in frozen and naming.inner.holds(atom, path):
            kind = Kind.WIDTH
        below = kind in (Kind.QUERY_HEADS, Kind.EXPERTS)
        parent = by_atom[p] if below and (p := nested[atom]) is not None else None
        name = f"{path or 'model'}:{kind.value}"
        if name in groups:
            name += f".{sum(other.startswith(f'{name}') for other in groups)}"
        groups[name] = by_atom[atom] = Group(
            name, atom, solution.sizes[atom], kind, tuple(members[atom]), parent,
            frozen.get(atom), "normalised" in marks, layer,
            math.gcd(ROW, solution.sizes[atom]) if atom in naming.stacked else 1, naming.minima.get(atom, 1),
        )  # fmt: skip
    return dict(sorted(groups.items(), key=lambda item: item[1].atom))


def _kind(
    atom: int, marks: set[str], nested: Mapping[int, int | None], with_children: set[int], *, spans: bool
) -> Kind:
    if NAMED_MARK in marks:
        return Kind.TOKENS
    if "heads" in marks:
        if nested.get(atom) is not None:
            return Kind.QUERY_HEADS
        return Kind.KV_HEADS if atom in with_children else Kind.HEADS
    if "head_dim" in marks:
        return Kind.HEAD_DIM
    if "experts" in marks:
        return Kind.EXPERTS
    return Kind.CHANNELS if spans else Kind.WIDTH


def _common(tensors: Iterable[str]) -> tuple[str, int | None]:
    """The longest common module path of some tensors, and the layer index in it, if any."""
    paths = [name.split(".")[:-1] for name in tensors]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    index = next((int(part) for part in shared if re.fullmatch(r"\d+", part)), None)
    return ".".join(shared), index


__all__ = ["Coupling", "Parameter", "couple"]
