"""Axes of products of two activations: what attention's heads and recurrent states are made of.

A feed-forward width is summed over with weights. An axis that is summed over between two activations (queries and
keys, what a recurrence reads and its state) is a dimension of a similarity: models scale by its extent. The channels
that are mixed over positions (the values of attention, the state that keys and values make) stand beside it in every
head, and models take them to be as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..ir.axes import Axis, atoms_of
from ..ir.graph import Graph, Op, Value

PRODUCTS = frozenset({"aten.matmul", "aten.mm", "aten.bmm", "aten.baddbmm"})


def head_channels(graph: Graph, axes: Mapping[Value, tuple[Axis, ...]]) -> set[int]:
    """Atoms that products of two activations sum over; and those that stay where such a product sums over positions."""
    weights = _weights(graph)
    held = {atom for p in graph.parameters for axis in axes[p.value] for atom in _atoms(axis)}
    found: set[int] = set()
    for op in graph.ops:
        for left, right in _products(op):
            if left in weights or right in weights:
                continue
            summed = _atoms(axes[left][-1])
            found |= summed
            if not summed & held and left.shape[-1] > 1:
                found |= _atoms(axes[left][-2]) | _atoms(axes[right][-1])
    return found


def _atoms(axis: Axis) -> set[int]:
    return {atom.id for atom in atoms_of(axis)}


def _products(op: Op) -> Iterator[tuple[Value, Value]]:
    if op.packet in PRODUCTS:
        left, right = op.args[-2:] if op.packet == "aten.baddbmm" else op.args[:2]
        if isinstance(left, Value) and isinstance(right, Value) and min(len(left.shape), len(right.shape)) > 1:
            yield left, right


def _weights(graph: Graph) -> set[Value]:
    """Parameters, constants, what is computed of them alone, and what is picked by index from stacks of weights."""
    found = {*(parameter.value for parameter in graph.parameters), *graph.constants}
    for op in graph.ops:
        operands = list(op.operands)
        picked = op.packet == "aten.index" and len(operands[0].shape) > 2 and operands[0] in found
        if picked or (operands and all(value in found for value in operands)):
            found.update(op.made)
    return found
