"""Stand-ins for weights that are not in memory: numbers, so that two programs can be compared by what they compute.

Whether a module, a graph and a configuration's own model are the same function is a question about code and shapes;
any weights that tell layouts apart will answer it. All stand-ins are views into one random buffer, as large as the
largest tensor, so that a model of any depth runs in the memory of one of its tensors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

SLACK = 8191
"""Where a tensor's view begins depends on its name, modulo this, so that no two tensors of a layer are equal."""


class StandIns:
    """Stand-ins for the parameters of a model, and of whatever smaller models are made of it.

    Args:
        model: its parameters may be on the meta device; its buffers are real.
    """

    def __init__(self, model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        # Uniform in +-sqrt(3/n): n products of them and of unit variance have unit variance again.
        largest = max(matrices, key=torch.Tensor.numel)
        bound = (3 / largest.shape[-1]) ** 0.5
        self._matrix = torch.empty(largest.numel() + SLACK).uniform_(-bound, bound, generator=generator)
        size = max((parameter.numel() for parameter in vectors), default=1)
        self._vector = torch.empty(size + SLACK).uniform_(0.5, 1.5, generator=generator)

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """First name of every parameter of ``model`` -> its stand-in, float32 of its shape."""
        return {name: self._one(name, parameter) for name, parameter in model.named_parameters()}

    def logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The first output of ``model`` with stand-ins for its weights, float32."""
        with torch.no_grad():
            return torch.as_tensor(functional_call(model, self.tensors(model), (), {**inputs, "use_cache": False})[0])

    def _one(self, name: str, like: torch.Tensor) -> torch.Tensor:
        start = zlib.crc32(name.encode()) % SLACK
        buffer = self._matrix if like.dim() > 1 else self._vector
        return buffer[start : start + like.numel()].view(like.shape)


def hollow(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose parameters are on the meta device and whose buffers, rotary tables say, hold their values."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = model_class(config)
    model.tie_weights()  # registering a parameter on the meta device made another of it
    return model.eval()
