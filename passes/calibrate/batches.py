"""Calibration batches, recorded calls of linear maps, and means and variances of their inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

from torch import Tensor, nn

from ...runtime.model.keywords import caching
from ...runtime.ranks import ALONE, Ranks
from ...runtime.streaming.turns import Feed
from ..data import is_inputs
from ..model.inputs import batches_of, called_with

if TYPE_CHECKING:
    from ..state import Data


@dataclass(eq=False)
class LinearCall:
    """One recorded linear call: a call of a linear map with its inputs and outputs.

    Attributes:
        tensor: name of the weight.
        expert: index in the weight's first dimension if it holds one linear map per expert; None otherwise.
        dim: the input dimension of the weight.
        x: inputs ``[T, k]``; for a convolution one row per window, and ``k`` is channels times kernel positions.
        y: outputs ``[T, n]``, with the bias.
        bias: the bias parameter; None if the call adds none.
        sample: index in the batch of every row, int64 ``[T]``; all zero when it is not known.
        given: the input tensor as it was passed to the call, so that its gradient can be computed.
        channels: the dimension of ``given`` with the input channels.
        gave: the output tensor as it was returned; its dimension ``channels`` holds the outputs.
        beside: what the outputs are added to next, ``[T, n]``: in most models the residual stream. None if they are not
            added to anything, or if calls are passed to a callback.
    """

    tensor: str
    expert: int | None
    dim: int
    x: Tensor
    y: Tensor
    bias: Tensor | None
    sample: Tensor
    given: Tensor
    channels: int
    gave: Tensor
    beside: Tensor | None = None


def calibration_feeds(
    data: Data, who: str, *, samples: int, length: int, seed: int | None, batch: int, ranks: Ranks = ALONE
) -> list[Feed]:
    """Calibration data as batches that a model is run on: samples of inputs, windows of text, or losses of a module.

    Args:
        data: with inputs, text or losses.
        who: subject and verb of the error when there is none.
        samples, length, seed: which samples or windows.
        batch: the most of them in one forward pass.
        ranks: who shares them; what is returned are those of this rank.

    Raises:
        RequestError: without calibration data or losses, or with too little.
    """
    if is_inputs(inputs := data.calibration):
        found = batches_of(inputs, samples=samples, length=length, seed=seed, batch=batch, ranks=ranks)
        return [called_with(batch) for batch in found]
    if data.losses:
        return list(ranks.share(data.losses, "losses"))
    return [_feed(window) for window in ranks.share(data.text(who).windows(length, samples, seed)).split(batch)]


def _feed(window: Tensor) -> Feed:
    def run(model: nn.Module) -> Any:
        return model(input_ids=window.to(next(model.parameters()).device), **caching(model, False))

    return run


def without_data(call: LinearCall) -> LinearCall:
    """The recorded call without its inputs and outputs."""
    none = call.x[:0].clone()
    return replace(call, x=none, y=call.y[:0].clone(), sample=call.sample[:0].clone(), given=none, gave=none)


class WeightUse(Protocol):
    """Where in a weight a linear map is; see :class:`LinearCall`."""

    @property
    def expert(self) -> int | None:
        """Index in the weight's first dimension."""

    @property
    def dim(self) -> int:
        """The input dimension of the weight."""


def matrix(weight: Tensor, at: WeightUse) -> Tensor:
    """The part of a weight that is a linear map, as a view ``[n, k]``; writing to it changes the weight."""
    part = weight if at.expert is None else weight[at.expert]
    dim = at.dim if at.expert is None else at.dim - 1
    if part.dim() > 2:
        return part.flatten(1)
    return part if dim == 1 else part.T


class PaddingMasks:
    """Inside, the padding mask of every batch is kept as the model is called for it.

    Args:
        model: what is called.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._batch = model, 0
        self._masks: dict[int, Tensor | None] = {}

    def __enter__(self) -> Self:
        self._handle = self._model.register_forward_pre_hook(self._hook, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def start(self, batch: int) -> None:
        """From now on, code of the model runs for this batch."""
        self._batch = batch

    def around(self, batch: int) -> AbstractContextManager[None]:
        """A context for code of the model that runs for a batch."""
        self.start(batch)
        return nullcontext()

    def of(self, batch: int) -> Tensor | None:
        """Bool ``[B, L]``, False for padding; None without padding."""
        return self._masks.get(batch)

    def _hook(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._masks[self._batch] = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


__all__ = ["Feed", "LinearCall", "PaddingMasks", "calibration_feeds", "matrix", "without_data"]
