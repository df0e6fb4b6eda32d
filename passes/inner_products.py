"""Axes in products of two activations: the channels of attention heads and of recurrent states.

A feed-forward width is summed over in a product with weights. In attention, two activations are multiplied (queries
with keys; in a recurrence, an input with the state). The axis of this sum is a head dimension: models scale by its
extent. Products that sum over positions (attention values, the state made from keys and values) keep the other head
channels, and models assume that there are equally many of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..ir.axes import Axis, atoms_of
from ..ir.graph import Graph, Op, Value

PRODUCTS = frozenset({"aten.matmul", "aten.mm", "aten.bmm", "aten.baddbmm"})

Axes = Mapping[Value, tuple[Axis, ...]]


def head_channels(graph: Graph, axes: Axes) -> set[int]:
    """Atoms that products of two activations sum over, or keep when such a product sums over positions."""
    weights = _weights(graph)
    held = {atom for p in graph.parameters for axis in axes[p.value] for atom in _atoms([axis])}
    found: set[int] = set()
    for op in graph.ops:
        operands = _factors(op)
        if operands is None or any(value in weights for value in operands):
            continue
        summed, stays = _sides(op, *operands, axes)
        found |= _atoms(summed)
        if not _atoms(summed) & held and any(axis.size > 1 for axis in summed):
            found |= _atoms(stays)
    return found


def _atoms(axes: Iterable[Axis]) -> set[int]:
    return {atom.id for axis in axes for atom in atoms_of(axis)}


def _factors(op: Op) -> tuple[Value, Value] | None:
    """The two tensors of a matrix product or einsum; None for other operators."""
    if op.packet == "aten.einsum":
        values = list(op.operands)
    elif op.packet in PRODUCTS:
        values = [arg for arg in op.args[-2:] if isinstance(arg, Value)]
    else:
        return None
    return (values[0], values[1]) if len(values) == 2 and min(len(v.shape) for v in values) > 1 else None


def _sides(op: Op, left: Value, right: Value, axes: Axes) -> tuple[list[Axis], list[Axis]]:
    """The axes that are summed over, and the axes of one operand only that are in the result."""
    if op.packet in PRODUCTS:
        return [axes[left][-1]], [axes[left][-2], axes[right][-1]]
    inputs, _, output = str(op.args[0]).replace(" ", "").partition("->")
    first, second = (
        dict(zip(spec, axes[v], strict=False)) for spec, v in zip(inputs.split(","), (left, right), strict=True)
    )
    if "." in inputs:
        return [], []
    shared = first.keys() & second.keys()
    alone = first.keys() ^ second.keys()
    both = first | second
    return [both[name] for name in sorted(shared - set(output))], [both[name] for name in sorted(alone & set(output))]


def _weights(graph: Graph) -> set[Value]:
    """Parameters, constants, values computed from these alone, and weights that an index picks from a stack."""
    found = {*(parameter.value for parameter in graph.parameters), *graph.constants}
    for op in graph.ops:
        operands = list(op.operands)
        picked = op.packet == "aten.index" and len(operands[0].shape) > 2 and operands[0] in found
        if picked or (operands and all(value in found for value in operands)):
            found.update(op.made)
    return found
