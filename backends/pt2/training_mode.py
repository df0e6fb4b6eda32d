"""Train a graph that was traced in evaluation mode: batch normalisation uses the statistics of its batch again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..own_names import unused

_BATCH_NORM = torch.ops.aten.batch_norm.default


class BatchNorm(nn.Module):
    """Batch normalisation that depends on training mode; its tensors stay where the graph has them."""

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, mean: Any, variance: Any
    ) -> torch.Tensor:
        """``x`` is ``[n, c, ...]``, all other tensors ``[c]``; in training mode the running statistics are updated."""
        return F.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, self.eps)


def follow_mode(module: fx.GraphModule) -> fx.GraphModule:
    """Make the batch normalisations of a graph that was traced in evaluation mode follow ``train()`` and ``eval()``.

    Dropout is not part of such a graph, and stays absent.

    Args:
        module: the graph; it is changed in place, and is in evaluation mode afterwards.
    """
    for node in list(module.graph.find_nodes(op="call_function", target=_BATCH_NORM)):
        x, weight, bias, mean, variance, training, momentum, eps, *_ = node.args
        if training or mean is None or variance is None:
            continue  # it uses the statistics of the batch in both modes
        name = unused(f"{node.name}_mode", module._modules)
        module.add_submodule(name, BatchNorm(float(momentum), float(eps)))
        with module.graph.inserting_before(node):
            new = module.graph.call_module(name, (x, weight, bias, mean, variance))
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    module.recompile()
    return module.eval()
