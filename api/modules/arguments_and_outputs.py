"""What goes into a graph and comes out of it, arranged as in the forward of a module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ...backends.pt2.plain_output import plain_output
from ...runtime.tolerances import relative_difference, same_function
from ...tracer.module import ForwardCall


def placeholders(call: ForwardCall, graph: fx.Graph) -> list[fx.Node]:
    """Make the arguments of the module, and return the tensors in them. Other values are fixed as in the example."""
    found: list[fx.Node] = []

    def walk(node: fx.Node, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(node)
        elif isinstance(value, Mapping | list | tuple):
            for key in value if isinstance(value, Mapping) else range(len(value)):
                walk(graph.call_function(operator.getitem, (node, key)), value[key])

    for name, value in call.bound.items():
        has_tensor = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
        walk(graph.placeholder(name) if has_tensor else graph.placeholder(name, default_value=None), value)
    return found


def arrangement(output: Any) -> Callable[[list[fx.Node]], Any]:
    """A function that arranges the outputs of the graph as the module returns them, in Python's own classes."""
    leaves, spec = pytree.tree_flatten(plain_output(output))

    def arrange(nodes: list[fx.Node]) -> Any:
        rest = iter(nodes)
        arranged = pytree.tree_unflatten([next(rest) if isinstance(x, torch.Tensor) else x for x in leaves], spec)
        return _made(nodes[0].graph, arranged)

    return arrange


def _made(graph: fx.Graph, arranged: Any) -> Any:
    """The same arrangement, made when the graph runs: one that stands in a graph is of torch's immutable classes."""
    if isinstance(arranged, dict):
        return graph.call_function(type(arranged), ([(key, _made(graph, part)) for key, part in arranged.items()],))
    if isinstance(arranged, list):
        return graph.call_function(list, ([_made(graph, part) for part in arranged],))
    return tuple(_made(graph, part) for part in arranged) if isinstance(arranged, tuple) else arranged


def apart(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest relative difference of outputs; infinite for another number of them."""
    if len(got) != len(expected):
        return float("inf")
    return max(relative_difference(a, b) for a, b in zip(got, expected, strict=True))


def same(outputs: Sequence[torch.Tensor]) -> float:
    """The largest difference between outputs of one function."""
    return max(same_function(tensor.dtype) for tensor in outputs)


def vector(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """All outputs, float64 ``[n]``."""
    return torch.cat([tensor.detach().double().flatten() for tensor in outputs])
