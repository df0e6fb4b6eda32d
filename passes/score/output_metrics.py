"""How errors of a linear map's outputs weigh in the loss: second moments of the gradients at the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...ir.groups import Group
from ...runtime.tensors import tensors_by_name
from ..calibrate.batches import LinearCall
from ..calibrate.dense_and_pruned import LinearMap
from ..calibrate.gram import add_gram, symmetric
from ..state import State
from .activation_gradients import backward, losses_of
from .consumer_scores import ConsumerScored, readers_of

MetricOf = Callable[[LinearMap], Tensor | None]
"""The metric of a linear map's outputs, float64 ``[n, n]``, symmetric and without negative eigenvalues, to be asked for
once; None when all outputs count equally."""


def output_metrics(step: ConsumerScored, state: State, groups: Sequence[Group]) -> MetricOf:
    """For every linear map that reads the groups its outputs' Fisher information, ``E[g g^T] / tokens``.

    ``g`` is the gradient of the summed loss at the outputs of one token. Output errors ``e`` change the loss by
    about ``1/2 sum (e^T E[g g^T] e) / T`` nats per token, with ``T`` tokens in total (the Kronecker factors of
    Martens and Grosse 2015; for pruning the LLM Surgeon, arXiv 2312.17244). A metric is forgotten once it is given.
    """
    tensors = tensors_by_name(state.subject.model)
    recorded = {r.consumer.tensor: tensors[r.consumer.tensor] for r in readers_of(groups, state.subject.graph)}
    sums: dict[tuple[str, int | None, int], Tensor] = {}
    predictions = 0
    for number, loss in enumerate(losses_of(step, state.data)):
        calls: list[LinearCall] = []
        gradients, count = backward(
            state.subject.model,
            loss,
            recorded,
            calls.append,
            number=number,
            wanted=lambda calls=calls: [call.gave for call in calls],  # type: ignore[misc]
        )
        predictions += count
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                rows = gradient.movedim(call.channels, -1).flatten(0, -2)
                key = (call.tensor, call.expert, call.dim)
                if key not in sums:
                    sums[key] = torch.zeros(2 * rows.shape[1:], dtype=torch.float64, device=rows.device)
                add_gram(sums[key], rows)

    def metric_of(at: LinearMap) -> Tensor | None:
        total = sums.pop((at.tensor, at.expert, at.dim), None)
        return None if total is None else symmetric(total).div_(predictions**2)

    return metric_of
