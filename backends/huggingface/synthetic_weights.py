"""Synthetic weights for a model whose weights are not in memory, so that two programs can be compared by their outputs.

Whether a module, a graph and the model of a configuration compute the same function depends on code and shapes. Any
weights that distinguish layouts can show it. All synthetic weights are views into one random buffer that is as large as
the largest tensor, so that a model of any depth runs in the memory of one tensor.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ...runtime.model.empty_weights import empty_weights
from ...runtime.model.keywords import caching
from ...runtime.streaming.left_as_found import left_as_found
from ...runtime.threads import one_thread

PERIOD = 1_000_003
"""The random numbers repeat after this many: a prime, so that no two rows or columns of a matrix are equal."""

SLACK = 8191
"""A tensor starts in the buffer at a hash of its name modulo this, so that no two tensors of a layer are equal."""

SAMPLED_SIZE = 1 << 20
"""Products with a matrix of at least this many elements are sampled."""

SAMPLED_BLOCKS, SAMPLED_ROWS = 16, 8
"""Number of sampled blocks, and rows in each: some in every head of most models, and whole cache lines."""


class SyntheticWeights:
    """Synthetic weights for the parameters of a model, and of the smaller models made from it.

    Args:
        model: the model. Its parameters may be on the meta device; its buffers have values.
    """

    def __init__(self, model: nn.Module) -> None:
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        # Uniform in +-sqrt(3/n): a sum of n products with inputs of unit variance has unit variance again.
        largest = max(matrices, key=torch.Tensor.numel)
        bound = (3 / largest.shape[-1]) ** 0.5
        self._matrix = largest.numel() + SLACK, bound
        size = max((parameter.numel() for parameter in vectors), default=1)
        self._vector = size + SLACK
        self._buffers: Any = lambda: None

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """First name of every parameter of ``model`` -> its synthetic weight, float32, in the same shape."""
        buffers = self._buffers() or self._drawn()
        return {name: _view(buffers, name, parameter) for name, parameter in model.named_parameters()}

    def logits(self, model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The first output of ``model`` with synthetic weights, float32."""
        with sampled_products():
            with left_as_found(model, values=True):
                output = functional_call(model, self.tensors(model), (), {**inputs, **caching(model, False)})
            return torch.as_tensor(output[0])

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """While the block runs, ``model`` computes on the CPU in float32, whatever it holds: its parameters are
        synthetic weights, its buffers are copied. Afterwards it holds the same objects as before."""
        values = self.tensors(model)
        stand_ins: dict[int, torch.Tensor] = {
            id(parameter): nn.Parameter(values[name], requires_grad=parameter.requires_grad)
            for name, parameter in model.named_parameters()
        }
        for buffer in model.buffers():
            stand_ins[id(buffer)] = buffer.to("cpu", torch.float32 if buffer.is_floating_point() else None, copy=True)
        with left_as_found(model):
            for module in model.modules():
                tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for table in tables:
                    table.update({name: stand_ins[id(tensor)] for name, tensor in table.items() if tensor is not None})
            yield

    def _drawn(self) -> _Buffers:
        """The numbers, the same each time; they are as large as the largest tensor, so that they go when not in use."""
        generator = torch.Generator().manual_seed(0)
        size, bound = self._matrix
        matrix = _random(size, -bound, bound, generator)
        made = _Buffers(matrix, _random(self._vector, 0.5, 1.5, generator))
        self._buffers = weakref.ref(made)
        return made


@dataclass(eq=False)
class _Buffers:
    """Random numbers for tensors of two and more dimensions, and for the others."""

    matrix: torch.Tensor
    vector: torch.Tensor


def _view(buffers: _Buffers, name: str, like: torch.Tensor) -> torch.Tensor:
    start = zlib.crc32(name.encode()) % SLACK
    buffer = buffers.matrix if like.dim() > 1 else buffers.vector
    return buffer[start : start + like.numel()].view(like.shape)


def _random(size: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """``size`` random numbers, uniform between two bounds; they repeat after :data:`PERIOD`."""
    numbers = torch.empty(size)
    first = numbers[:PERIOD].uniform_(low, high, generator=generator)
    for start in range(PERIOD, size, PERIOD):
        numbers[start : start + PERIOD] = first[: size - start]
    return numbers


@contextmanager
def sampled_products() -> Iterator[None]:
    """For a run on synthetic weights: products with large matrices are sampled, in the same way in every run."""
    with torch.no_grad(), one_thread(), _Sampling():  # a few tokens are too little work for several threads
        yield


class _Sampling(TorchDispatchMode):
    """Use only some blocks of rows of a large matrix, as if the other rows were zero, so that a forward through
    billions of weights takes seconds. Different layouts differ in all rows alike, so some rows are enough to notice
    them. An error by sampling can only make equal programs look different, so a wrong model is never accepted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not kwargs and func is torch.ops.aten.mm.default and args[1].numel() >= SAMPLED_SIZE:
            return _sampled(*args)
        if not kwargs and func is torch.ops.aten.addmm.default and args[2].numel() >= SAMPLED_SIZE:
            return args[0] + _sampled(*args[1:])
        return func(*args, **(kwargs or {}))


def _sampled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = weight.shape[0]
    if rows <= SAMPLED_BLOCKS * SAMPLED_ROWS:
        return x @ weight
    out = x.new_zeros(x.shape[0], weight.shape[1])
    for number in range(SAMPLED_BLOCKS):
        block = slice(start := number * (rows - SAMPLED_ROWS) // (SAMPLED_BLOCKS - 1), start + SAMPLED_ROWS)
        out.addmm_(x[:, block], weight[block])  # views: to gather the blocks would take most of the time
    return out * (rows / (SAMPLED_BLOCKS * SAMPLED_ROWS)) ** 0.5


def meta_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose parameters are on the meta device and whose buffers, such as rotary tables, have values."""
    with empty_weights(), no_init_weights():
        model = model_class(config)
    model.tie_weights()  # a parameter registered on the meta device is a new object
    return model.eval()
