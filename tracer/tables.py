"""Tables that are added to data, such as those of positions: sliced where they stand in the module."""

from __future__ import annotations

from collections import Counter

from torch import nn

from ..ir.graph import Graph, Op, Value

_SHAPES = frozenset({
    "aten.view", "aten.reshape", "aten.slice", "aten.select", "aten.permute", "aten.transpose", "aten.unsqueeze",
    "aten.squeeze", "aten.expand", "aten.flatten", "aten.to", "aten.unflatten",
})  # fmt: skip
"""Operators of one tensor that give its numbers another shape or dtype, or take some of them."""
_SUMS = frozenset({"aten.add", "aten.sub"})


def keep_tables(graph: Graph, module: nn.Module) -> None:
    """Compute what one sum reads of a stored buffer in the graph, instead of folding it to a constant. In place.

    A constant is sliced after it was folded: a graph can do that, the code of a module cannot. A buffer that is read
    once is like a parameter, and its own slice is what the module's code needs. Buffers that are read several times
    stay constants, since a slice would tie their readers together; so do those that are factors, whose numbers tell
    whether units carry a value by their index.
    """
    stored = {name for name in module.state_dict() if name}
    buffers = {parameter.value for parameter in graph.parameters if parameter.is_buffer and parameter.name in stored}
    readers = Counter(value for op in (*graph.ops, *graph.folded) for value in dict.fromkeys(op.operands))
    readers.update(graph.outputs)
    made_by = {value: op for op in graph.folded for value in op.made}
    kept: list[Op] = []
    for op in graph.ops:
        if op.packet in _SUMS:
            for value in op.operands:
                kept += _chain(value, buffers, readers, made_by)
    graph.folded = [op for op in graph.folded if op not in kept]
    graph.ops = [*kept, *graph.ops]


def _chain(value: Value, buffers: set[Value], readers: Counter[Value], made_by: dict[Value, Op]) -> list[Op]:
    """The operators from a buffer to a value, in order; none if anything else reads what is between."""
    found: list[Op] = []
    while value not in buffers:
        op = made_by.get(value)
        operands = [] if op is None else list(op.operands)
        if op is None or op.packet not in _SHAPES or len(operands) != 1 or readers[value] != 1:
            return []
        found.append(op)
        (value,) = operands
    return found[::-1] if readers[value] == 1 else []
