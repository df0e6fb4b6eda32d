"""Scores of activation: the sizes of the units' activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...ir.groups import Group
from ..calibrate.batches import LinearCall
from ..data import Scores
from ..state import State
from .consumer_pass import ConsumerScored
from .consumer_scores import ConsumerMember, readers_of, require_scores, visit


def activation_scores(step: ConsumerScored, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    """The scores, as :meth:`~.activation.Activation.scores` returns them."""
    readers = readers_of(groups, state.subject.graph)
    totals, told_apart = _totals(step, state, readers)
    if not all(state.ranks.gather(told_apart)) and step.batch > 1 and not state.data.losses:
        # Rows that a router picked do not tell of which window they are: then windows go one by one.
        totals, _ = _totals(replace(step, batch=1), state, readers)
    totals = state.ranks.sum_arrays(totals)
    scores = {group.name: np.zeros(group.units) for group in groups}
    for at, total in totals.items():
        scores[readers[at].group.name] += np.sqrt(total)
    require_scores(scores, groups, {readers[at].group.name for at in totals}, step.name)
    return scores


def _totals(step: ConsumerScored, state: State, readers: Sequence[ConsumerMember]) -> tuple[dict[int, Scores], bool]:
    """Squared means of every reader's units, summed over windows; and whether the windows of all rows are known."""
    totals: dict[int, Scores] = {}
    told_apart = True

    def receive(reader: ConsumerMember, call: LinearCall) -> None:
        nonlocal told_apart
        told_apart &= call.given.dim() != 2
        at = readers.index(reader)
        squares = _squared_means(call.x, call.sample, reader).cpu().numpy()
        totals[at] = totals[at] + squares if at in totals else squares

    visit(state.subject.runner, step.feeds(state.data, state.ranks), readers, receive)
    return totals, told_apart


def _squared_means(x: Tensor, sample: Tensor, reader: ConsumerMember) -> Tensor:
    """Squared mean size of every unit, summed over the samples: float64 ``[units]``."""
    units = torch.from_numpy(reader.units(x.shape[1])).to(x.device)
    there = units >= 0
    sizes = x.new_zeros(len(x), reader.group.units, dtype=torch.float64)
    sizes.index_add_(1, units[there], x[:, there].double().square())
    samples = int(sample.max()) + 1 if len(sample) else 1
    sums = sizes.new_zeros(samples, reader.group.units).index_add_(0, sample, sizes.sqrt())
    counts = torch.bincount(sample, minlength=samples).clamp(min=1)
    return (sums / counts[:, None]).square().sum(0)
