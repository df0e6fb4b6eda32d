"""What goes into a graph and comes out of it, arranged as in the forward of a module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

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
    """A function that arranges the outputs of the graph as the module returns them, in dicts and tuples."""
    leaves, spec = pytree.tree_flatten(_plain(output))

    def arrange(nodes: list[fx.Node]) -> Any:
        rest = iter(nodes)
        return pytree.tree_unflatten([next(rest) if isinstance(x, torch.Tensor) else x for x in leaves], spec)

    return arrange


def _plain(output: Any) -> Any:
    if isinstance(output, Mapping):
        return {key: _plain(value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return tuple(_plain(value) for value in output)
    return output


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
