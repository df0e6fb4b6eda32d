"""fisher: remove the units with the smallest Fisher information, from squared gradients of on/off masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...ir.groups import Group
from ...runtime.tensors import tensors_by_name
from ..calibrate.batches import LinearCall
from ..data import Scores
from ..state import State
from .activation_gradients import BatchLoss, backward, losses_of
from .consumer_scores import ConsumerMember, ConsumerScored, readers_of, require_scores


@dataclass(frozen=True, kw_only=True)
class Fisher(ConsumerScored):
    """Remove the units whose removal raises the loss least, to second order, with the Fisher information as Hessian.

    Every unit has a mask at every token, 1 when it is on. Let ``s_tu`` be the derivative of the summed loss by this
    mask: the sum of ``x * dL/dx`` over the unit's channels, at the inputs of its consumers. The score is
    ``1/(2N) * sum over t of s_tu**2`` in nats per token, with ``N`` predictions (diagonal Fisher information of masks:
    Kwon et al., arXiv 2204.09656, section 3.2, here per token instead of per sample). All scores are changes of one
    loss, so scores of different groups can be compared.
    """

    name: ClassVar[str] = "fisher"

    @property
    def compares(self) -> bool:
        """All scores are changes of one loss."""
        return True

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward and one backward pass over the calibration data, without weight gradients.

        Raises:
            RequestError: without calibration data, for windows of fewer than 2 tokens, or for a group whose units no
                linear map reads.
            FxpruneError: for a loss that is not finite.
        """
        readers = readers_of(groups, state.subject.graph)
        totals = {group.name: np.zeros(group.units) for group in groups}
        reached: set[str] = set()
        predictions = 0
        for number, loss in enumerate(losses_of(self, state.data)):
            found, count = _switches(state.subject.model, loss, readers, number)
            predictions += count
            for name, squares in found.items():
                totals[name] += squares
                reached.add(name)
        scores = {name: total / (2 * predictions) for name, total in totals.items()}
        require_scores(scores, groups, reached, self.name)
        return scores


def _switches(
    model: nn.Module, loss: BatchLoss, readers: Sequence[ConsumerMember], number: int
) -> tuple[dict[str, Scores], int]:
    """Squared derivatives with respect to the masks, summed, for every group in the loss; and the predictions."""
    tensors = tensors_by_name(model)
    recorded = {reader.consumer.tensor: tensors[reader.consumer.tensor] for reader in readers}
    # Several linear maps of a group (keys, queries, values) read one activation, which has one gradient.
    read: dict[tuple[str, int], tuple[ConsumerMember, Tensor, int]] = {}

    def receive(call: LinearCall) -> None:
        for reader in readers:
            if (reader.consumer.tensor, reader.consumer.dim) == (call.tensor, call.dim) and call.given.requires_grad:
                read.setdefault((reader.group.name, id(call.given)), (reader, call.given, call.channels))

    gradients, count = backward(
        model, loss, recorded, receive, number=number, wanted=lambda: [x for _, x, _ in read.values()]
    )
    found: dict[str, Scores] = {}
    for (reader, x, channels), gradient in zip(read.values(), gradients, strict=True):
        if gradient is not None:
            squares = _squares(x.detach(), gradient, channels, reader).cpu().numpy()
            found[reader.group.name] = found.get(reader.group.name, 0.0) + squares
    return found, count


def _squares(x: Tensor, gradient: Tensor, channels: int, reader: ConsumerMember) -> Tensor:
    """Squared derivatives with respect to the mask of every unit, summed over rows: float64 ``[units]``."""
    products = (x.double() * gradient.double()).movedim(channels, -1)
    products = products.reshape(-1, products.shape[-1])
    units = torch.from_numpy(reader.units(products.shape[1])).to(x.device)
    there = units >= 0
    switches = products.new_zeros(len(products), reader.group.units)
    return switches.index_add_(1, units[there], products[:, there]).square().sum(0)
