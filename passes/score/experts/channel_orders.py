"""Scores of the channels of single experts, and every expert's channels in the order of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ....ir import FxpruneError, Indices, RequestError
from ....ir.groups import Group, Kind
from ....runtime.tensors import tensors_by_name
from ...calibrate.batches import LinearCall
from ...calibrate.linear_maps import WeightAccess
from ...couple.coupling import Coupling
from ...data import Scores
from ...state import State
from ..consumer_scores import ConsumerMember, readers_of, require_scores
from ..gradients.activation_gradients import ActivationReceiver, activation_gradients, losses_of
from .expert_channels import ExpertChannels

Sums = dict[tuple[str, int | None], Scores]
"""Group and expert -> float64 ``[units]``."""


def reorder_channels(step: ExpertChannels, state: State) -> Sequence[Group]:
    """Put the channels of every expert in the order of their scores, in place; returns the groups of such channels.

    Raises:
        RequestError, FxpruneError: as :meth:`~.expert_channels.ExpertChannels.run` says.
    """
    coupling = state.subject.coupling
    assert coupling is not None, "the manager runs couple first"
    groups = [group for group in coupling.groups.values() if _inside_experts(group, coupling)]
    if not groups:
        raise RequestError(
            f"{step.name}: the model has no experts with inner channels of their own",
            "use fisher or taylor: in a dense model every channel has its own score",
        )
    sums = _sums(step, state, groups)
    runner = state.subject.runner
    with runner.session():
        tensors = tensors_by_name(runner.model)
        access = WeightAccess(runner, brings=True)
        for group in groups:
            own = {expert: found for (name, expert), found in sums.items() if name == group.name}
            orders = {expert: _order(found, group) for expert, found in own.items() if expert is not None}
            for member in group.members:
                with access.writing(tensors[member.tensor]):
                    _reorder(tensors[member.tensor], member.dim, group.unit_map(member.axis), orders)
    return groups


def channel_scores(step: ExpertChannels, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    """The scores, as :meth:`~.expert_channels.ExpertChannels.scores` returns them."""
    sums = _sums(step, state, groups)
    scores = {group.name: np.zeros(group.units) for group in groups}
    for (name, _), found in sums.items():
        scores[name] += np.abs(found)
    require_scores(scores, groups, {name for name, _ in sums}, step.name)
    return scores


def _sums(step: ExpertChannels, state: State, groups: Sequence[Group]) -> Sums:
    """The scores of the units of every expert, and of those outside of experts, in nats per token; those of
    ``taylor`` with their sign."""
    by_place: dict[tuple[str, int], list[ConsumerMember]] = {}
    for reader in readers_of(groups, state.subject.graph):
        by_place.setdefault((reader.consumer.tensor, reader.consumer.dim), []).append(reader)
    sums: Sums = {}

    def receive(call: LinearCall, gradient: Tensor) -> None:
        products = (call.given.detach().double() * gradient.double()).movedim(call.channels, -1)
        products = products.reshape(-1, products.shape[-1])
        found = (products.square() / 2 if step.score == "fisher" else products).sum(0).cpu().numpy()
        for reader in by_place[call.tensor, call.dim]:
            units = reader.units(len(found))
            there, size = units >= 0, reader.group.units
            own = np.bincount(units[there], weights=found[there], minlength=size)
            key = reader.group.name, call.expert
            sums[key] = sums.get(key, np.zeros(size)) + own

    def chosen(call: LinearCall) -> Tensor | None:
        return call.given if (call.tensor, call.dim) in by_place else None

    runner, names = state.subject.runner, list(dict.fromkeys(tensor for tensor, _ in by_place))
    predictions = activation_gradients(
        runner, list(losses_of(step, state)), lambda: ActivationReceiver(runner, names, chosen, receive, sums.clear)
    )
    predictions, sums = sum(state.ranks.gather(predictions)), state.ranks.sum_arrays(sums)
    return {key: found / predictions for key, found in sums.items()}


def _inside_experts(group: Group, coupling: Coupling) -> bool:
    """Whether all tensors of a group are stacks of experts, so that each expert may have an order of its own."""
    if group.kind is not Kind.WIDTH or group.frozen is not None:
        return False
    values = {parameter.name: parameter.value for parameter in coupling.graph.parameters}
    first = {coupling.axes[values[member.tensor]][0] for member in group.members}
    experts = [one for one in coupling.groups.values() if one.kind is Kind.EXPERTS]
    stacks = {(member.tensor, member.dim) for one in experts for member in one.members}
    return len(first) == 1 and all(member.dim > 0 and (member.tensor, 0) in stacks for member in group.members)


def _order(found: Scores, group: Group) -> Indices:
    """The units, those with the largest scores first."""
    if not np.isfinite(found).all():
        raise FxpruneError(f"the scores of {group.name} are not finite", "run in float32; check the calibration text")
    return np.argsort(-np.abs(found), kind="stable")


def _reorder(tensor: Tensor, dim: int, units: Indices, orders: dict[int, Indices]) -> None:
    """Put the units of every expert of ``tensor [experts, ...]`` in its order along a dimension, in place.

    Args:
        tensor: the weight.
        dim: the dimension with the units.
        units: the unit at every position of it, -1 for none.
        orders: expert -> its units, in their new order; those of others stay as they are.
    """
    held = [np.flatnonzero(units == unit) for unit in range(int(units.max()) + 1)]  # a gate and an up row, for example
    for expert, order in orders.items():
        index = np.arange(len(units))
        for unit, source in enumerate(order):
            index[held[unit]] = held[source]
        part = tensor[expert]
        part.copy_(part.index_select(dim - 1, torch.from_numpy(index).to(part.device)))
