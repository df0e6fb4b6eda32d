"""Stand-ins for weights that are not in memory: numbers, so that two programs can be compared by what they compute.

Whether a module, a graph and a configuration's own model are the same function is a question about code and shapes;
any weights that tell layouts apart will answer it. All stand-ins are views into one random buffer, as large as the
largest tensor, so that a model of any depth runs in the memory of one of its tensors.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..runtime.threads import one_thread

PERIOD = 1_000_003
"""After how many random numbers a buffer begins anew: a prime, so that no two rows or columns of a matrix are alike."""

SLACK = 8191
"""Where a tensor's view begins depends on its name, modulo this, so that no two tensors of a layer are equal."""

LARGE = 1 << 20
"""Elements from which on products with a matrix are sampled."""

BLOCKS, BLOCK = 16, 8
"""How many blocks of how many rows are sampled: some in every head of most models, and whole cache lines."""


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
        self._matrix = _random(largest.numel() + SLACK, -bound, bound, generator)
        size = max((parameter.numel() for parameter in vectors), default=1)
        self._vector = _random(size + SLACK, 0.5, 1.5, generator)

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """First name of every parameter of ``model`` -> its stand-in, float32 of its shape."""
        return {name: self._one(name, parameter) for name, parameter in model.named_parameters()}

    def logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The first output of ``model`` with stand-ins for its weights, float32."""
        with played():
            return torch.as_tensor(functional_call(model, self.tensors(model), (), {**inputs, "use_cache": False})[0])

    def _one(self, name: str, like: torch.Tensor) -> torch.Tensor:
        start = zlib.crc32(name.encode()) % SLACK
        buffer = self._matrix if like.dim() > 1 else self._vector
        return buffer[start : start + like.numel()].view(like.shape)


def _random(size: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """``size`` numbers, uniform between two bounds; those after the first :data:`PERIOD` are copies."""
    numbers = torch.empty(size)
    first = numbers[:PERIOD].uniform_(low, high, generator=generator)
    for start in range(PERIOD, size, PERIOD):
        numbers[start : start + PERIOD] = first[: size - start]
    return numbers


@contextmanager
def played() -> Iterator[None]:
    """Around a run on stand-ins: products with large ones are sampled, the same way in every run."""
    with torch.no_grad(), one_thread(), _Sampling():  # a few tokens are too little to share
        yield


class _Sampling(TorchDispatchMode):
    """As if most rows of a large matrix were zero, some blocks of them excepted, so that a forward through billions of
    weights takes seconds. What tells two layouts apart is spread over all rows alike, and a difference that is an
    artefact of this makes a run refuse, never accept."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not kwargs and func is torch.ops.aten.mm.default and args[1].numel() >= LARGE:
            return _sampled(*args)
        if not kwargs and func is torch.ops.aten.addmm.default and args[2].numel() >= LARGE:
            return args[0] + _sampled(*args[1:])
        return func(*args, **(kwargs or {}))


def _sampled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = weight.shape[0]
    if rows <= BLOCKS * BLOCK:
        return x @ weight
    out = x.new_zeros(x.shape[0], weight.shape[1])
    for number in range(BLOCKS):
        block = slice(start := number * (rows - BLOCK) // (BLOCKS - 1), start + BLOCK)
        out.addmm_(x[:, block], weight[block])  # from where they lie: to gather the blocks would take most of the time
    return out * (rows / (BLOCKS * BLOCK)) ** 0.5


def hollow(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose parameters are on the meta device and whose buffers, rotary tables say, hold their values."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = model_class(config)
    model.tie_weights()  # a parameter registered on the meta device is a new object
    return model.eval()
