"""Multiply-accumulates (MACs) of a graph, by operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .graph import Graph, Op
from .rules.rule import argument, tensor


def macs(graph: Graph) -> int:
    """Multiply-accumulates of one run at the shapes of the graph.

    Contractions count (linear maps, matrix products, attention, convolutions); element-wise operators and table
    look-ups do not. Masked attention counts in full, because the masked products are computed too.
    """
    return sum(MACS[op.packet](op) for op in graph.ops if op.packet in MACS)


def _linear(op: Op) -> int:
    return math.prod(op.result.shape) * tensor(op, 0).shape[-1]


def _addmm(op: Op) -> int:
    return math.prod(op.result.shape) * tensor(op, 1).shape[-1]


def _attention(op: Op) -> int:
    """Attention scores and weighted values, for every query head."""
    query, key, value = (tensor(op, i).shape for i in range(3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _convolution(op: Op) -> int:
    """Each result element reads one window of its group's channels; if transposed, each operand element adds one."""
    weight = tensor(op, 1).shape
    transposed = op.packet.startswith("aten.conv_transpose") or argument(op, 6, "transposed", False) is True
    elements = tensor(op, 0).shape if transposed else op.result.shape
    return math.prod(elements) * math.prod(weight[1:])


def _einsum(op: Op) -> int:
    equation = op.args[0]
    assert isinstance(equation, str)
    extents: dict[str, int] = {}
    for spec, value in zip(equation.replace(" ", "").partition("->")[0].split(","), op.operands, strict=True):
        head, _, tail = spec.partition("...")
        named = [*zip(head, value.shape, strict=False), *zip(reversed(tail), reversed(value.shape), strict=False)]
        extents.update(named)
    shared = set(extents) - set(equation.replace(" ", "").partition("->")[2])
    return math.prod(op.result.shape) * math.prod(extents[letter] for letter in shared)


def _bilinear(op: Op) -> int:
    return math.prod(op.result.shape) * math.prod(tensor(op, 2).shape[1:])


MACS: Mapping[str, Callable[[Op], int]] = {
    **dict.fromkeys(("aten.linear", "aten.matmul", "aten.mm", "aten.bmm"), _linear),
    **dict.fromkeys(("aten.addmm", "aten.baddbmm"), _addmm),
    **dict.fromkeys(("aten.convolution", "aten.conv1d", "aten.conv2d", "aten.conv3d"), _convolution),
    **dict.fromkeys((f"aten.conv_transpose{n}d" for n in (1, 2, 3)), _convolution),
    "aten.scaled_dot_product_attention": _attention,
    "aten.einsum": _einsum,
    "aten.bilinear": _bilinear,
}
"""Operator without its overload -> multiply-accumulates of one application."""
