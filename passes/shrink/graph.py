"""shrink: from a plan, make slices of tensors and a rewritten graph with correct shape arguments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...ir import FxpruneError, Indices, Plan, RequestError
from ...ir.axes import Axis
from ...ir.graph import Arg, Graph, Op, Value
from ...ir.groups import Group, kept_positions
from ...ir.rules import Resized, compared, compared_with, rule_table
from ...ir.rules.rule import Resize
from ..couple.coupling import Coupling

Extents = dict[str, frozenset[tuple[int, int]]]


def make_plan(coupling: Coupling, keep: Mapping[str, Indices]) -> Plan:
    """The plan that keeps these units, with the slices of every tensor.

    Args:
        coupling: the analysis.
        keep: group name -> sorted units to keep; other groups keep everything.

    Raises:
        RequestError: for an unknown or frozen group; for units that are unsorted, repeated, out of range or empty; for
            a nested group, if the parent units keep different numbers.
    """
    cut = {name: np.asarray(units, dtype=np.int64) for name, units in keep.items()}
    for name in sorted(cut, key=lambda name: name in coupling.groups and coupling.groups[name].parent is not None):
        _check_units(coupling, name, cut[name], cut)
    cut = {name: units for name, units in cut.items() if len(units) < coupling.groups[name].units}
    kept = _Kept(coupling, cut)
    slices: dict[tuple[str, int], Indices] = {}
    for parameter in coupling.graph.parameters:
        for dim in range(len(parameter.value.shape)):
            stays = kept.positions(parameter.value, dim)
            if stays is not None:
                slices[parameter.name, dim] = stays
    return Plan(cut, slices)


def _check_units(coupling: Coupling, name: str, units: Indices, keep: Mapping[str, Indices]) -> None:
    group = coupling.groups.get(name)
    if group is None:
        raise RequestError(
            f"the plan names a group {name!r} that this model does not have", "list its groups: `fxprune trace MODEL`"
        )
    if group.frozen is not None and len(units) < group.units:
        raise RequestError(f"the plan cuts {name}, which is frozen: {group.frozen}", "leave this group out of the plan")
    if len(units) == 0 or np.any(np.diff(units) <= 0) or units[0] < 0 or units[-1] >= group.units:
        raise RequestError(
            f"the plan keeps units of {name} that are not sorted, unique and within 0..{group.units - 1}",
            "list at least one unit of every group in the plan, in ascending order",
        )
    if len(units) < group.minimum:
        raise RequestError(
            f"the plan keeps {len(units)} units of {name}, but every token needs {group.minimum}", "keep more units"
        )
    if group.parent is not None:
        parents = keep.get(group.parent.name, np.arange(group.parent.units))
        counts = np.bincount(units // group.size, minlength=group.parent.size)[parents]
        if len(set(counts.tolist())) != 1 or counts[0] == 0:
            raise RequestError(
                f"the plan keeps {sorted(set(counts.tolist()))} units of {name} per unit of {group.parent.name}",
                "keep equally many units per parent unit",
            )


class _Kept:
    """The positions that are kept of every axis; computed once per axis."""

    def __init__(self, coupling: Coupling, keep: Mapping[str, Indices]) -> None:
        self._axes = coupling.axes
        self._keep = keep
        self._groups: dict[int, Group] = {a: g for a, g in coupling.by_atom.items() if g.name in keep}
        self._known: dict[int, Indices | None] = {}
        self.shapes: dict[Value, tuple[int, ...]] = {}

    def positions(self, value: Value, dim: int) -> Indices | None:
        return self.of_axis(self._axes[value][dim])

    def of_axis(self, axis: Axis) -> Indices | None:
        if id(axis) not in self._known:
            self._known[id(axis)] = kept_positions(axis, self._groups, self._keep)
        return self._known[id(axis)]

    def kept(self, value: Value, dim: int) -> Indices:
        stays = self.positions(value, dim)
        return np.arange(value.shape[dim]) if stays is None else stays

    def shape(self, value: Value) -> tuple[int, ...]:
        if value not in self.shapes:
            extents = []
            for dim, extent in enumerate(value.shape):
                stays = self.positions(value, dim)
                extents.append(extent if stays is None else len(stays))
            self.shapes[value] = tuple(extents)
        return self.shapes[value]


def rewrite(coupling: Coupling, plan: Plan) -> Graph:
    """The smaller graph: leaves are sliced, and the rules of the operators compute new shape arguments.

    Folded operators keep the shapes of the dense model; ``fxprune.take`` slices a constant that shrinks.
    """
    return _Rewrite(coupling, plan).run()


class _Rewrite:
    def __init__(self, coupling: Coupling, plan: Plan) -> None:
        self.old = coupling.graph
        self.kept, self.positions = _Kept(coupling, plan.keep), coupling.positions
        self.new: dict[Value, Value] = {}
        self.takes: list[Op] = []

    def run(self) -> Graph:
        old = self.old
        dense = {value for op in old.folded for value in (*op.operands, *op.made)}
        read = {value for op in old.ops for value in op.operands}
        for value in (*old.constants, *(v for op in old.folded for v in op.made)):
            self.new[value] = self._take(value) if value in read else value
        for parameter in old.parameters:
            self.new[parameter.value] = (
                self._take(parameter.value) if parameter.value in dense else self._resized(parameter.value)
            )
        for value in old.inputs:
            self.new[value] = self._resized(value)
        ops = [self._op(op) for op in old.ops]
        return Graph(
            old.name,
            [self.new[v] for v in old.inputs],
            [p if p.value in dense else replace(p, value=self.new[p.value]) for p in old.parameters],
            list(old.constants),
            [*old.folded, *self.takes],
            ops,
            [self.new[v] for v in old.outputs],
            dict(old.extents),
        )

    def _resized(self, value: Value) -> Value:
        return Value(value.name, value.dtype, self.kept.shape(value))

    def _take(self, value: Value) -> Value:
        """The part of a constant that is kept: one ``take`` operator for each dimension that shrinks."""
        current = value
        for dim in range(len(value.shape)):
            stays = self.kept.positions(value, dim)
            if stays is not None:
                shape = (*current.shape[:dim], len(stays), *current.shape[dim + 1 :])
                result = Value(f"{value.name}.kept{dim}", value.dtype, shape)
                self.takes.append(Op("fxprune.take", (current, dim, tuple(stays.tolist())), {}, (result,)))
                current = result
        return current

    def _op(self, op: Op) -> Op:
        rule = rule_table().get(op.packet)
        changed = any(self.kept.shape(v) != v.shape for v in (*op.operands, *op.made))
        source = _rewritten(op, rule.resize, self.kept) if changed and rule is not None and rule.resize else op
        source = self._renumbered(source)
        results = tuple(None if v is None else self._resized(v) for v in op.results)
        self.new.update(
            (old, new) for old, new in zip(op.results, results, strict=True) if old is not None and new is not None
        )
        args = tuple(self._mapped(arg) for arg in source.args)
        kwargs = {key: self._mapped(arg) for key, arg in source.kwargs.items()}
        return Op(source.target, args, kwargs, results, op.source)

    def _renumbered(self, op: Op) -> Op:
        """A call that compares numbers of tokens with one: that token has another number now."""
        number, first = compared(op), op.args[0] if op.args else None
        axis = self.positions.get(first) if isinstance(first, Value) and number is not None else None
        stays = None if axis is None else self.kept.of_axis(axis)
        if stays is None or number is None or not 0 <= number < axis.size:  # type: ignore[union-attr]
            return op
        place = int(np.searchsorted(stays, number))
        if place == len(stays) or stays[place] != number:
            raise FxpruneError(
                f"the model compares its input with token {number}{f' at {op.source}' if str(op.source) else ''}",
                "keep this token",
            )
        return compared_with(op, place)

    def _mapped(self, arg: Arg) -> Arg:
        if isinstance(arg, Value):
            return self.new[arg]
        return tuple(self._mapped(item) for item in arg) if isinstance(arg, tuple) else arg


def _rewritten(op: Op, resize: Resize, kept: Resized) -> Op:
    """Raises FxpruneError: where the rule cannot rewrite the arguments, though it could as long as nothing was cut."""
    try:
        return resize(op, kept)
    except Exception as odd:
        where = f" at {op.source}" if str(op.source) else ""
        raise FxpruneError(
            f"the arguments of {op.packet}{where} cannot be rewritten: {str(odd) or type(odd).__name__}",
            "leave the groups that this operator touches out of the plan",
        ) from odd


def extents_by_module(before: Graph, after: Graph) -> Extents:
    """For every module, the extents in its operators before and after a rewrite.

    Args:
        before, after: a graph and its rewrite, with the same operators.

    Returns:
        Module path -> pairs ``(old, new)`` of all dimensions and integer arguments of the operators in the module and
        its children, including unchanged ones, without named extents (batch, sequence).
    """
    pairs: dict[str, set[tuple[int, int]]] = defaultdict(set)
    skip = set(before.extents.values())
    for old, new in zip(before.ops, after.ops, strict=True):
        found = _pairs(old, new)
        path = old.source.module
        while True:
            pairs[path] |= {pair for pair in found if pair[0] not in skip}
            if not path:
                break
            path = path.rpartition(".")[0]
    return {path: frozenset(found) for path, found in pairs.items()}


def _pairs(old: Op, new: Op) -> set[tuple[int, int]]:
    values = [*zip(old.operands, new.operands, strict=True), *zip(old.made, new.made, strict=True)]
    found = {pair for a, b in values for pair in zip(a.shape, b.shape, strict=True)}
    if old.target == new.target:
        found |= {pair for pair in zip(_whole(old.args), _whole(new.args), strict=False) if min(pair) > 1}
    return found


def _whole(args: Arg) -> list[int]:
    if isinstance(args, tuple):
        return [i for arg in args for i in _whole(arg)]
    return [args] if isinstance(args, int) and not isinstance(args, bool) else []
