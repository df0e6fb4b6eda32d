"""Scores of fisher: squared derivatives of the loss by a mask for every unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...ir.groups import Group
from ...runtime.streaming.block_runner import BlockRunner
from ..calibrate.batches import LinearCall
from ..data import Scores
from ..state import State
from .consumer_pass import ConsumerScored
from .consumer_scores import ConsumerMember, readers_of, require_scores
from .gradients.activation_gradients import ActivationReceiver, activation_gradients, losses_of


def fisher_scores(step: ConsumerScored, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    """The scores, as :meth:`~.fisher.Fisher.scores` returns them."""
    readers = readers_of(groups, state.subject.graph)
    totals: dict[str, Scores] = {}
    losses = list(losses_of(step, state))
    runner = state.subject.runner
    predictions = activation_gradients(runner, losses, lambda: _switches(runner, readers, totals))
    predictions, totals = sum(state.ranks.gather(predictions)), state.ranks.sum_arrays(totals)
    scores = {group.name: totals.get(group.name, np.zeros(group.units)) / (2 * predictions) for group in groups}
    require_scores(scores, groups, set(totals), step.name)
    return scores


def _switches(runner: BlockRunner, readers: Sequence[ConsumerMember], totals: dict[str, Scores]) -> ActivationReceiver:
    """Adds squared derivatives with respect to the masks to ``totals``, by group."""
    by_place: dict[tuple[str, int], list[ConsumerMember]] = {}
    for reader in readers:
        by_place.setdefault((reader.consumer.tensor, reader.consumer.dim), []).append(reader)
    # Several linear maps of a group (keys, queries, values) read one activation, which has one gradient.
    counted: set[tuple[str, int]] = set()
    kept: list[Tensor] = []

    def receive(call: LinearCall, gradient: Tensor) -> None:
        if kept and kept[0] is not call.given:
            counted.clear()
        kept[:] = [call.given]
        for reader in by_place[call.tensor, call.dim]:
            name = reader.group.name
            if (name, id(call.given)) not in counted:
                counted.add((name, id(call.given)))
                squares = _squares(call.given.detach(), gradient, call.channels, reader).cpu().numpy()
                totals[name] = totals[name] + squares if name in totals else squares

    return ActivationReceiver(
        runner, list(dict.fromkeys(reader.consumer.tensor for reader in readers)),
        lambda call: call.given if (call.tensor, call.dim) in by_place else None, receive, totals.clear,
    )  # fmt: skip


def _squares(x: Tensor, gradient: Tensor, channels: int, reader: ConsumerMember) -> Tensor:
    """Squared derivatives with respect to the mask of every unit, summed over rows: float64 ``[units]``."""
    products = (x.double() * gradient.double()).movedim(channels, -1)
    products = products.reshape(-1, products.shape[-1])
    units = torch.from_numpy(reader.units(products.shape[1])).to(x.device)
    there = units >= 0
    switches = products.new_zeros(len(products), reader.group.units)
    return switches.index_add_(1, units[there], products[:, there]).square().sum(0)
