"""Linear maps of a model: read and written where their weights are, or are brought to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.blocks import BlockList
from ...runtime.tensors import tensors_by_name
from .batches import LinearCall, matrix


class WeightAccess:
    """How the values of a model's weights are reached while it runs.

    Args:
        runner: of the model.
        brings: whether weights of blocks are not in memory, so that they are brought for every access.
    """

    def __init__(self, runner: BlockRunner, *, brings: bool) -> None:
        self._runner, self._brings = runner, brings
        self._blocks = runner.blocks if brings else BlockList()
        self._names = {id(tensor): name for name, tensor in tensors_by_name(runner.model).items()}
        self._changed: set[int] = set()

    def name(self, parameter: Tensor) -> str:
        """First name of a parameter of the model."""
        return self._names[id(parameter)]

    @contextmanager
    def reading(self, tensor: Tensor) -> Iterator[None]:
        """Inside, the values of a parameter are in memory."""
        path = self._blocks.holder(self.name(tensor))
        with nullcontext() if path is None else self._runner.loaded(path):
            yield

    @contextmanager
    def writing(self, *tensors: Tensor) -> Iterator[None]:
        """Inside, the values of parameters, of one block if they are in any, may be written to."""
        with self.reading(tensors[0]), torch.no_grad():
            self._runner.changing(tensor for tensor in tensors if self._brings or id(tensor) not in self._changed)
            self._changed.update(map(id, tensors))
            yield


@dataclass(frozen=True)
class BiasPlace:
    """Where a bias is: a parameter, or a view of one.

    Attributes:
        parameter: the parameter.
        size, stride, offset: of the view, in the parameter's memory.
    """

    parameter: Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, bias: Tensor) -> BiasPlace | None:
        """The place of a bias; None for one that is no parameter and no view of one."""
        held = bias if bias._base is None else bias._base
        if not isinstance(held, nn.Parameter):
            return None
        return cls(held, tuple(bias.shape), bias.stride(), int(bias.storage_offset() - held.storage_offset()))

    def value(self) -> Tensor:
        """The bias as a view of the parameter's present values."""
        held = self.parameter.detach()
        return held.as_strided(self.size, self.stride, held.storage_offset() + self.offset)


@dataclass(frozen=True)
class LinearForm:
    """A linear map by names and numbers, which another process understands.

    Attributes:
        tensor, expert, dim: as in :class:`LinearMap`.
        outputs: number of its outputs.
        bias: name of the parameter that holds its bias; with size, stride and offset as in :class:`BiasPlace`.
    """

    tensor: str
    expert: int | None
    dim: int
    outputs: int
    bias: tuple[str, tuple[int, ...], tuple[int, ...], int] | None


@dataclass(frozen=True)
class LinearMap:
    """One linear map of a model: a weight, or one expert's part of it, and its bias.

    Attributes:
        tensor, expert, dim: as in :class:`~.batches.LinearCall`.
        parameter: the whole weight.
        beside: where its bias is; None without a bias.
        access: how their values are reached.
    """

    tensor: str
    expert: int | None
    dim: int
    parameter: Tensor = field(compare=False, repr=False)
    beside: BiasPlace | None = field(compare=False, repr=False)
    access: WeightAccess = field(compare=False, repr=False)

    @classmethod
    def of(cls, call: LinearCall, parameter: Tensor, access: WeightAccess) -> LinearMap:
        """The linear map of a recorded call."""
        beside = None if call.bias is None else BiasPlace.of(call.bias)
        return cls(call.tensor, call.expert, call.dim, parameter, beside, access)

    @classmethod
    def from_form(cls, form: LinearForm, tensors: Mapping[str, Tensor], access: WeightAccess) -> LinearMap:
        """The linear map of a form, in a model with these tensors."""
        beside = None
        if form.bias is not None:
            name, size, stride, offset = form.bias
            beside = BiasPlace(tensors[name], size, stride, offset)
        return cls(form.tensor, form.expert, form.dim, tensors[form.tensor], beside, access)

    @property
    def form(self) -> LinearForm:
        """It for another process."""
        beside, bias = self.beside, None
        if beside is not None:
            bias = self.access.name(beside.parameter), beside.size, beside.stride, beside.offset
        return LinearForm(self.tensor, self.expert, self.dim, self.weight.shape[0], bias)

    def __str__(self) -> str:
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"

    @property
    def weight(self) -> Tensor:
        """``[n, k]``, a view; its values are those of the moment."""
        return matrix(self.parameter.detach(), self)

    @property
    def bias(self) -> Tensor | None:
        """``[n]``, a view as well; None without a bias."""
        return None if self.beside is None else self.beside.value()

    @property
    def unknowns(self) -> int:
        """Number of weights, and bias, of one output."""
        return self.weight.shape[1] + (self.beside is not None)

    def whole(self) -> Tensor:
        """Weight and bias side by side, ``[n, unknowns]``."""
        with self.access.reading(self.parameter):
            bias = self.bias
            return self.weight if bias is None else torch.cat([self.weight, bias[:, None]], 1)

    def put(self, whole: Tensor) -> None:
        """Write weight and bias, rounded to their dtype."""
        with self.access.writing(self.parameter, *([] if self.beside is None else [self.beside.parameter])):
            weight, bias = self.weight, self.bias
            weight.copy_(whole[:, : weight.shape[1]])
            if bias is not None:
                bias.copy_(whole[:, -1])

    def shift(self, by: Tensor) -> None:
        """Add to the bias, which is there."""
        assert self.beside is not None
        with self.access.writing(self.beside.parameter):
            bias = self.beside.value()
            bias.add_(by.to(bias.dtype))
