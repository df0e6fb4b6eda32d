"""Activation gradients: gradients of the loss at the calls of linear maps, one calibration batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ir import FxpruneError, RequestError
from ...runtime.experts import ONE_BY_ONE, experts_as
from ..calibrate.batches import LinearCall
from ..calibrate.linear_calls import LinearCallRecorder
from ..model.forward import logits_of
from ..state import Data
from .backward import as_it_was
from .consumer_scores import ConsumerScored

BatchLoss = Callable[[nn.Module], tuple[Tensor, int]]
"""Takes a module; returns the loss summed over predictions, and the number of predictions."""


def losses_of(step: ConsumerScored, data: Data) -> Iterator[BatchLoss]:
    """One loss for every batch of the calibration text; the user's losses if there are any.

    Raises:
        RequestError: without calibration data, with too little text, or for windows of fewer than 2 tokens.
    """
    if data.losses:
        yield from (_counted(loss) for loss in data.losses)
        return
    text = data.text(f"{step.name} scores need")
    if step.length < 2:
        raise RequestError(f"length {step.length} leaves no token to predict", "use windows of at least 2 tokens")
    windows = text.windows(step.length, step.samples, step.seed)
    yield from (_next_tokens(batch) for batch in windows.split(step.batch))


def _counted(loss: Callable[[nn.Module], Tensor]) -> BatchLoss:
    return lambda model: (loss(model), 1)


def _next_tokens(windows: Tensor) -> BatchLoss:
    def loss(model: nn.Module) -> tuple[Tensor, int]:
        logits = logits_of(model, windows)[:, :-1].flatten(0, 1)
        targets = windows[:, 1:].flatten().to(logits.device)
        return functional.cross_entropy(logits, targets, reduction="sum"), len(targets)

    return loss


def backward(
    model: nn.Module,
    loss: BatchLoss,
    recorded: Mapping[str, Tensor],
    receive: Callable[[LinearCall], None],
    *,
    number: int,
    wanted: Callable[[], Sequence[Tensor]],
) -> tuple[Sequence[Tensor | None], int]:
    """Gradients of a loss at activations, without gradients of weights.

    Args:
        model: the model; it is not changed.
        loss: the loss of one batch.
        recorded: weights by name; calls on them are recorded.
        receive: takes each recorded call; its tensors have an autograd history.
        number: index of the batch, for messages.
        wanted: called after the forward pass; returns the tensors whose gradients to compute.

    Returns:
        A gradient for every tensor of ``wanted``, None if the loss does not depend on it; the number of predictions.

    Raises:
        FxpruneError: for a loss that is not finite.
    """
    with as_it_was(model), torch.enable_grad(), experts_as(ONE_BY_ONE, model):
        # Activations need an autograd history; the backward pass below computes their gradients only.
        model.requires_grad_(True)
        with LinearCallRecorder(recorded, receive=receive):
            value, count = loss(model)
        if not bool(value.isfinite()):
            raise FxpruneError(f"the loss on batch {number} is {value.item()}", "run in float32; check the calibration")
        tensors = wanted()
        return (torch.autograd.grad(value, tensors, allow_unused=True) if tensors else ()), count
