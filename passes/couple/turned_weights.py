"""Weights with their dimensions in another order, cast or copied: what an operator then reads is still that weight."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Graph, Op, Value
from ...ir.rules import source_dims


@dataclass(frozen=True)
class TurnedWeight:
    """A parameter as an operator reads it.

    Attributes:
        parameter: its value.
        dims: the parameter's dimension of each dimension that is read.
    """

    parameter: Value
    dims: tuple[int, ...]


def turned_weights(graph: Graph) -> dict[Value, TurnedWeight]:
    """Every parameter, and every value that is one with its dimensions permuted, such as ``weight.T``."""
    found = {p.value: TurnedWeight(p.value, tuple(range(len(p.value.shape)))) for p in graph.parameters}
    for op in graph.ops:
        operands, made = list(op.operands), list(op.made)
        before = found.get(operands[0]) if len(operands) == len(made) == 1 else None
        order = None if before is None else _order(op, len(before.dims))
        if before is not None and order is not None:
            found[made[0]] = TurnedWeight(before.parameter, tuple(before.dims[dim] for dim in order))
    return found


def _order(op: Op, dims: int) -> list[int] | None:
    try:
        order = source_dims(op)
    except Exception:  # an unusual call; its axes are frozen
        return None
    return order if order is not None and sorted(order) == list(range(dims)) else None


def only_turns(op: Op, turned: dict[Value, TurnedWeight]) -> bool:
    """Whether an operator gives nothing but a parameter in another order: it is not what uses the weight."""
    made = list(op.made)
    return bool(made) and all(value in turned for value in made)
