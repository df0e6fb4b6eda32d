"""Axes in products of two activations: the channels of attention heads and of recurrent states.

A feed-forward width is summed over in a product with weights. In attention, two activations are multiplied (queries
with keys; in a recurrence, an input with the state). The axis of this sum is a head dimension: models scale by its
extent. Products that sum over positions (attention values, the state made from keys and values) keep the other head
channels, and models assume that there are equally many of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...ir.axes import Axis, atoms_of
from ...ir.graph import Graph, Value
from ...ir.rules import contraction_of, picked_from
from ...ir.rules.contraction import Product

ValueAxes = Mapping[Value, tuple[Axis, ...]]


def head_channels(graph: Graph, axes: ValueAxes) -> set[int]:
    """Atoms that products of two activations sum over, or keep when such a product sums over positions."""
    weights = _weights(graph)
    held = {atom for p in graph.parameters for axis in axes[p.value] for atom in _atoms([axis])}
    found: set[int] = set()
    for op in graph.ops:
        contraction = contraction_of(op)
        if contraction is None or contraction.weight_of(op) in weights:
            continue
        for product in contraction.products(op):
            values = [value for value, _ in product.factors]
            # Attention says itself what its heads are, and an einsum with dots is not read as attention.
            if not contraction.weight and any(word.startswith(".") for word in product.result[1]):
                continue
            if any(value is None or value in weights or len(value.shape) < 2 for value in values) or len(values) != 2:
                continue
            summed, stays = _sides(product, axes)
            found |= _atoms(summed)
            if not _atoms(summed) & held and any(axis.size > 1 for axis in summed):
                found |= _atoms(stays)
    return found


def _atoms(axes: Iterable[Axis]) -> set[int]:
    return {atom.id for axis in axes for atom in atoms_of(axis)}


def _sides(product: Product, axes: ValueAxes) -> tuple[list[Axis], list[Axis]]:
    """Axes that both factors are summed over, and those of one factor only, which stay."""
    places = [
        {word: axis for word, axis in zip(dims, axes[value], strict=True) if not word.startswith(".")}
        for value, dims in product.factors
        if value is not None
    ]
    first, second = places
    result = set(product.result[1])
    summed, alone = (first.keys() & second.keys()) - result, (first.keys() ^ second.keys()) & result
    both = first | second
    return [both[word] for word in sorted(summed)], [both[word] for word in sorted(alone)]


def _weights(graph: Graph) -> set[Value]:
    """Parameters, constants, values computed from these alone, and weights that an index picks from a stack."""
    found = {*(parameter.value for parameter in graph.parameters), *graph.constants}
    for op in graph.ops:
        operands = list(op.operands)
        if picked_from(op) in found or (operands and all(value in found for value in operands)):
            found.update(op.made)
    return found
