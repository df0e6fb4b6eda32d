"""What a graph costs to run: multiply-accumulates, as the rules of its contractions count them."""

from __future__ import annotations

from .graph import Graph, Op
from .rules import contraction_of


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one run at the shapes of the graph.

    Contractions count (linear maps, matrix products, attention, convolutions); element-wise operators and table
    look-ups do not. Masked attention counts in full, because the masked products are computed too.
    """
    return sum(macs_of(op) for op in graph.ops)


def inputs_of(graph: Graph) -> str:
    """The inputs that :func:`macs` counts a run of, with their shapes: ``input_ids[5,7]``."""
    return ", ".join(f"{value.name}[{','.join(map(str, value.shape))}]" for value in graph.inputs)


def macs_of(op: Op) -> int:
    """Multiply-accumulates of one operator: 0 for one that contracts nothing, and for a call that its rule does not
    support."""
    found = contraction_of(op)
    return 0 if found is None else found.macs(op)
