"""Activation gradients: gradients of the loss at the calls of linear maps, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....ir import FxpruneError, RequestError
from ....runtime.experts import ONE_BY_ONE, experts_as
from ....runtime.streaming.block_runner import BlockRunner
from ....runtime.streaming.gradient_receiver import GradientReceiver
from ....runtime.streaming.reverse import Loss
from ...calibrate.batches import LinearCall
from ...calibrate.linear_calls import LinearCallRecorder
from ...data import is_inputs
from ...model.forward import logits_of
from ...model.inputs import batches_of
from ...state import State
from ..consumer_pass import ConsumerScored
from .input_losses import BatchLoss, losses_on


def losses_of(step: ConsumerScored, state: State) -> Iterator[BatchLoss]:
    """One loss for every batch of this rank of the calibration data; the user's losses if there are any.

    Raises:
        RequestError: without calibration data, with too little of it, or for windows of fewer than 2 tokens.
    """
    data, ranks = state.data, state.ranks
    if data.losses:
        yield from (_counted(loss) for loss in ranks.share(data.losses, "losses"))
        return
    if is_inputs(inputs := data.calibration):
        batches = batches_of(
            inputs, samples=step.samples, length=step.length, seed=step.seed, batch=step.batch, ranks=ranks
        )
        yield from losses_on(inputs, batches, state.subject.outputs)
        return
    text = data.text(f"{step.name} scores need")
    if step.length < 2:
        raise RequestError(f"length {step.length} leaves no token to predict", "use windows of at least 2 tokens")
    windows = ranks.share(text.windows(step.length, step.samples, step.seed))
    yield from (_next_tokens(batch) for batch in windows.split(step.batch))


def _counted(loss: Callable[[nn.Module], Tensor]) -> BatchLoss:
    return lambda model: (loss(model), 1)


def _next_tokens(windows: Tensor) -> BatchLoss:
    def loss(model: nn.Module) -> tuple[Tensor, int]:
        logits = logits_of(model, windows)[:, :-1].flatten(0, 1)
        targets = windows[:, 1:].flatten().to(logits.device)
        return functional.cross_entropy(logits, targets, reduction="sum"), len(targets)

    return loss


class ActivationReceiver(GradientReceiver):
    """Takes the gradients at the inputs or outputs of recorded calls.

    Args:
        runner: of the model.
        names: of the weights whose calls are recorded.
        chosen: a recorded call -> the tensor whose gradient is wanted; None when it is of no use.
        receive: takes a call and the gradient of that tensor.
        forget: called when everything begins again.
    """

    def __init__(
        self,
        runner: BlockRunner,
        names: Sequence[str],
        chosen: Callable[[LinearCall], Tensor | None],
        receive: Callable[[LinearCall, Tensor], None],
        forget: Callable[[], None],
    ) -> None:
        self._runner, self._names, self._chosen, self._receive, self._forget = runner, names, chosen, receive, forget
        self.restart()

    def restart(self) -> None:
        self._recorder: LinearCallRecorder | None = None
        self._new: list[Tensor] = []
        self._calls: dict[int, list[LinearCall]] = {}
        self._forget()

    def around(self, batch: int) -> AbstractContextManager[object]:
        del batch
        if self._recorder is None:
            tensors = dict(self._runner.model.named_parameters())
            weights: Mapping[str, Tensor] = {name: tensors[name] for name in self._names}
            self._recorder = LinearCallRecorder(weights, receive=self._record)
        return self._recorder

    def _record(self, call: LinearCall) -> None:
        tensor = self._chosen(call)
        if tensor is None or not tensor.requires_grad:
            return
        if id(tensor) not in self._calls:
            self._new.append(tensor)
        self._calls.setdefault(id(tensor), []).append(call)

    def activations(self) -> Sequence[Tensor]:
        found, self._new = self._new, []
        return found

    def activation_gradients(self, batch: int, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        del batch
        for tensor, gradient in zip(tensors, gradients, strict=True):
            for call in self._calls.pop(id(tensor)):
                if gradient is not None:
                    self._receive(call, gradient)


def activation_gradients(
    runner: BlockRunner, losses: Sequence[BatchLoss], receiver: Callable[[], ActivationReceiver]
) -> int:
    """Gradients of losses at activations, without gradients of weights; returns the number of predictions.

    Raises:
        FxpruneError: for a loss that is not finite.
    """
    counts = [0] * len(losses)

    def counted(number: int) -> Loss:
        def run(model: nn.Module) -> Tensor:
            value, counts[number] = losses[number](model)
            if not bool(value.isfinite()):
                raise FxpruneError(
                    f"the loss on batch {number} is {value.item()}", "run in float32; check the calibration"
                )
            return value

        return run

    with experts_as(ONE_BY_ONE, runner.model), torch.enable_grad():
        runner.gradients([counted(number) for number in range(len(losses))], (), receiver())
    return sum(counts)
