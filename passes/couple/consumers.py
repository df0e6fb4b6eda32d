"""The weights that read the units of groups, found from the graph, in execution order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...ir.graph import Graph, Op, Value
from ...ir.groups import Group, Occurrence, Role
from .turned_weights import only_turns, turned_weights


@dataclass(frozen=True)
class Consumer:
    """A weight that reads the units of a group as its inputs.

    Attributes:
        tensor: its name.
        dim: its input dimension.
        modules: paths of the modules whose forward uses it, in order.
        order: index of the first operator that uses it.
        reads: the activation that it is multiplied with; None when there are several.
        linear_only: whether only one kind of operator uses it; not so for a tied embedding.
    """

    tensor: str
    dim: int
    modules: tuple[str, ...]
    order: int
    reads: Value | None
    linear_only: bool

    @property
    def owner(self) -> str:
        """Path of the module that holds the weight."""
        return self.tensor.rpartition(".")[0]


def taking_in(group: Group, graph: Graph) -> list[Occurrence]:
    """Members that read the units of a group, or may do so.

    A weight of three or more dimensions may hold one linear map per expert; only its calls show which dimension is the
    input.
    """
    dims = {parameter.name: len(parameter.value.shape) for parameter in graph.parameters}
    return [m for m in group.members if m.role is Role.IN or (dims[m.tensor] > 2 and m.dim > 0)]


def find_consumers(graph: Graph, places: Iterable[tuple[str, int]]) -> list[Consumer]:
    """The consumers at these (tensor, dimension) places, sorted by the first operator that uses them."""
    readers = _readers(graph)
    leaves = turned_weights(graph)
    found = []
    for tensor, dim in dict.fromkeys(places):
        ops = readers.get(tensor)
        if not ops:
            continue
        modules = tuple(dict.fromkeys(op.source.module for _, op in ops))
        reads = {value for _, op in ops for value in op.operands if value not in leaves}
        alike = len({op.packet for _, op in ops}) == 1
        found.append(Consumer(tensor, dim, modules, ops[0][0], reads.pop() if len(reads) == 1 else None, alike))
    return sorted(found, key=lambda consumer: (consumer.order, consumer.tensor))


def meets_another(consumer: Consumer, graph: Graph) -> bool:
    """Whether an operator reads what a weight gives, or what is made of that alone, together with other activations."""
    leaves = turned_weights(graph)
    readers: dict[Value, list[Op]] = {}
    for op in graph.ops:
        for value in dict.fromkeys(op.operands):
            readers.setdefault(value, []).append(op)
    todo = [value for _, op in _readers(graph)[consumer.tensor] for value in op.made]
    seen = set(todo)
    while todo:
        for op in readers.get(todo.pop(), ()):
            if len({value for value in op.operands if value not in leaves}) > 1:
                return True
            todo += [value for value in op.made if value not in seen]
            seen.update(op.made)
    return False


def _readers(graph: Graph) -> dict[str, list[tuple[int, Op]]]:
    names = {parameter.value: parameter.name for parameter in graph.parameters}
    turned = turned_weights(graph)
    readers: dict[str, list[tuple[int, Op]]] = {}
    for number, op in enumerate(graph.ops):
        if only_turns(op, turned):
            continue
        for parameter in dict.fromkeys(turned[value].parameter for value in op.operands if value in turned):
            readers.setdefault(names[parameter], []).append((number, op))
    return readers
