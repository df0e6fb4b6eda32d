"""Walks through graphs of autograd: backward through a piece of one, and what a tensor was computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def walk_graph(
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor] | None,
    leaves: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    seen: Sequence[Tensor],
    *,
    retain: bool = False,
) -> Sequence[Tensor | None]:
    """One backward pass, which computes no more gradients than asked for.

    Args:
        tensors, gradients: where it begins; for a loss the gradients are None.
        leaves, parameters: their ``grad`` grows.
        seen: what else is wanted, with a graph of its own.
        retain: whether the graph will be walked again.

    Returns:
        The gradients of ``seen``; None where there is none.
    """
    if not tensors or not (leaves or parameters or seen):
        return [None] * len(seen)
    if not seen:
        torch.autograd.backward(tensors, gradients, retain_graph=retain, inputs=[*leaves, *parameters])
        return []
    inputs = [*leaves, *parameters, *seen]
    found = torch.autograd.grad(tensors, inputs, gradients, retain_graph=retain, allow_unused=True)
    for leaf, gradient in zip(inputs[: len(leaves) + len(parameters)], found, strict=False):
        if gradient is not None:
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    return found[len(leaves) + len(parameters) :]


def reaches(tensor: Tensor, leaves: Mapping[int, int], names: Mapping[int, str]) -> tuple[set[int], set[str]]:
    """The calls whose outputs, and the wanted parameters, that a tensor was computed from outside of blocks."""
    if tensor.is_leaf:
        nodes: list[Any] = []
        variables = [tensor]
    else:
        nodes, variables = [tensor.grad_fn], []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            variables.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return (
        {leaves[id(v)] for v in variables if id(v) in leaves},
        {names[id(v)] for v in variables if id(v) in names},
    )
