"""Units whose index carries a value: bins that are multiplied with their positions, coordinates, times.

Such units are not interchangeable. A network reads off them which of them fired, so that the ones that stay no longer
cover what they covered, however small their scores are. They are found from the graph: an activation is multiplied
with something that nobody learned and that differs along them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from ...ir.axes import atoms_of
from ...ir.graph import Graph, Op, Value
from ...ir.rules import contraction_of
from .coupling import Coupling

FEWEST = 3
"""Evenly spaced values say something from this number on."""

SPACING = 1e-4
"""Largest relative difference between the steps of values that count as evenly spaced."""


def mark_ordered(
    coupling: Coupling, computed: Mapping[Value, torch.Tensor], stored: Mapping[str, torch.Tensor]
) -> Coupling:
    """Give groups whose units carry values by their index a reason why, in :attr:`~fxprune.ir.groups.Group.ordered`.

    Args:
        coupling: the analysis of the graph.
        computed: values of its constants and folded operators, as far as they are known. An activation that is
            multiplied with one that is not constant along some units orders them.
        stored: parameters and buffers by name; those on the meta device are not looked at. They can be learned, so they
            order units only if they are evenly spaced along them, as ``arange`` and ``linspace`` are.
    """
    values = _Fixed(coupling, computed, stored)
    reasons: dict[int, str] = {}
    for op in coupling.graph.ops:
        for fixed in values.multiplied(op):
            for atom, name in values.orders(fixed).items():
                reasons.setdefault(atom, f"what it holds is multiplied with {name}, which counts its units{_at(op)}")
        for fixed in values.added_identity(op):
            atoms = (atom.id for axis in coupling.axes[fixed] for atom in atoms_of(axis))
            for atom in atoms:
                reasons.setdefault(atom, f"an identity matrix is added to what it holds{_at(op)}")
    if not reasons.keys() & coupling.by_atom.keys():
        return coupling
    groups = {
        n: replace(g, ordered=reasons.get(g.atom) if g.frozen is None else None) for n, g in coupling.groups.items()
    }
    parents = {name: group.parent and groups[group.parent.name] for name, group in groups.items()}
    return replace(coupling, groups={name: replace(group, parent=parents[name]) for name, group in groups.items()})


class _Fixed:
    """What a forward reads that is the same for all inputs."""

    def __init__(
        self, coupling: Coupling, computed: Mapping[Value, torch.Tensor], stored: Mapping[str, torch.Tensor]
    ) -> None:
        self.coupling, self.values = coupling, dict(computed)
        self.names = _learnable(coupling.graph)
        for parameter in coupling.graph.parameters:
            data = stored.get(parameter.name)
            if data is not None and not data.is_meta:
                self.values[parameter.value] = data
        self.roots = _roots(coupling.graph)

    def multiplied(self, op: Op) -> Iterator[Value]:
        """The fixed factors of activations in a call."""
        if op.target == "aten.mul.Tensor":
            factors = [value for value in op.operands if value is not None]
        elif (found := contraction_of(op)) is not None:
            factors = [value for product in found.products(op) for value, _ in product.factors if value is not None]
        else:
            return
        if any(value not in self.roots for value in factors):
            yield from (value for value in factors if value in self.roots)

    def added_identity(self, op: Op) -> Iterator[Value]:
        """The fixed terms of a sum that are identity matrices."""
        if op.target != "aten.add.Tensor":
            return
        for value in op.operands:
            data = None if value in self.names else self.values.get(value)
            if data is not None and data.dim() > 1 and data.shape[-1] == data.shape[-2] > 1 and _is_identity(data):
                yield value

    def orders(self, fixed: Value) -> dict[int, str]:
        """Atom -> name of what differs along it, in what a fixed value was made of."""
        roots = self.roots[fixed]
        if len(roots) > 1 and roots & self.names.keys():
            return {}  # a weight that a constant masks is learned
        held = {atom.id for axis in self.coupling.axes[fixed] for atom in atoms_of(axis)} & self.coupling.by_atom.keys()
        found: dict[int, str] = {}
        for root in roots & self.values.keys():
            for dim, axis in enumerate(self.coupling.axes[root]):
                atoms = {atom.id for atom in atoms_of(axis)} & held
                if atoms and self._differs(root, dim):
                    found |= dict.fromkeys(atoms, self.names.get(root, "a constant of the model's code"))
        return found

    def _differs(self, root: Value, dim: int) -> bool:
        data = self.values[root]
        return _evenly_spaced(data, dim) if root in self.names else bool((data != data.narrow(dim, 0, 1)).any())


def _roots(graph: Graph) -> dict[Value, frozenset[Value]]:
    """Every value that no input reaches -> the parameters, buffers, constants and folded results that it is made of."""
    inputs = set(graph.inputs)
    found = {value: frozenset([value]) for value in graph.leaves() if value not in inputs}
    for op in graph.ops:
        if op.operands and all(value in found for value in op.operands):
            found |= dict.fromkeys(op.made, frozenset().union(*(found[value] for value in op.operands)))
    return found


def _learnable(graph: Graph) -> dict[Value, str]:
    """Parameters, buffers, and the folded results of these -> the name of one."""
    found = {parameter.value: parameter.name for parameter in graph.parameters}
    for op in graph.folded:
        if (name := next((found[value] for value in op.operands if value in found), None)) is not None:
            found |= dict.fromkeys(op.made, name)
    return found


def _is_identity(data: torch.Tensor) -> bool:
    return bool((data == torch.eye(data.shape[-1], dtype=data.dtype, device=data.device)).all())


def _evenly_spaced(data: torch.Tensor, dim: int) -> bool:
    """Whether all lines of values along a dimension rise or fall by the same step, and one of them does."""
    if data.shape[dim] < FEWEST or not data.numel() or data.is_complex():
        return False
    lines = data.detach().movedim(dim, -1).reshape(-1, data.shape[dim])
    if not _steps_evenly(lines[:1].double()):  # most weights end here
        return False
    return _steps_evenly(lines.double())


def _steps_evenly(lines: torch.Tensor) -> bool:
    steps = lines.diff(dim=-1)
    mean = steps.mean(-1, keepdim=True)
    return bool((mean != 0).all() and ((steps - mean).abs() <= SPACING * mean.abs()).all())


def _at(op: Op) -> str:
    return f" ({op.target} at {op.source})" if op.source else f" ({op.target})"
