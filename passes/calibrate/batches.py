"""Calibration batches, recorded calls of linear maps, and means and variances of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...runtime.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from ..state import Data

Feed = Callable[[nn.Module], Any]
"""Runs a module on one batch of calibration data."""


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
    """Calibration data as batches that a model is run on: windows of text, or the losses of a module.

    Args:
        data: with text or losses.
        who: subject and verb of the error when there is neither.
        samples, length, seed: which windows.
        batch: windows in one forward pass.
        ranks: who shares them; what is returned are those of this rank.

    Raises:
        RequestError: without calibration text or losses, or with too little text.
    """
    if data.losses:
        return list(ranks.share(data.losses, "losses"))
    return [_feed(window) for window in ranks.share(data.text(who).windows(length, samples, seed)).split(batch)]


def _feed(window: Tensor) -> Feed:
    def run(model: nn.Module) -> Any:
        return model(input_ids=window.to(next(model.parameters()).device), use_cache=False)

    return run


def matrix(weight: Tensor, call: LinearCall) -> Tensor:
    """The part of a weight that a call used, as a view ``[n, k]``; writing to it changes the weight."""
    part = weight if call.expert is None else weight[call.expert]
    dim = call.dim if call.expert is None else call.dim - 1
    if part.dim() > 2:
        return part.flatten(1)
    return part if dim == 1 else part.T


@contextmanager
def padding_mask(model: nn.Module) -> Iterator[Callable[[], Tensor | None]]:
    """Inside, the yielded function returns the padding mask of the last call of the model: bool ``[B, L]``, or None."""
    found: list[Tensor | None] = [None]

    def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        found[0] = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield lambda: found[0]
    finally:
        handle.remove()


__all__ = ["Feed", "LinearCall", "calibration_feeds", "matrix", "padding_mask"]
