"""expert_channels: remove from every expert of a mixture its own worst channels, equally many from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ....ir import FxpruneError, Indices, RequestError
from ....ir.groups import Group, Kind
from ....ir.options import option
from ....runtime.tensors import tensors_by_name
from ...calibrate.batches import LinearCall
from ...calibrate.linear_maps import WeightAccess
from ...couple.coupling import Coupling
from ...data import Scores
from ...prune import HEAD_CHOICES
from ...state import State
from ..consumer_pass import ConsumerScored
from ..consumer_scores import ConsumerMember, readers_of, require_scores
from ..gradients.activation_gradients import ActivationReceiver, activation_gradients, losses_of

Sums = dict[tuple[str, int | None], Scores]
"""Group and expert -> float64 ``[units]``."""

REORDERED = "reordered"
"""In the report of a pass: the groups whose channels it reordered, so that its plan does not say which ones went."""


@dataclass(frozen=True, kw_only=True)
class ExpertChannels(ConsumerScored):
    """Remove from every expert its own worst channels, equally many from each; other widths lose theirs as well.

    The experts of a mixture are stacks of weights, from which a channel is cut in all experts at once. The order of
    channels within an expert has no meaning. So each expert's channels are put in the order of their scores first, and
    then the last ones are cut. Let ``s_t`` be the derivative of the loss by a mask of the channel at token ``t``:
    ``fisher`` takes ``1/(2N) * sum of s_t**2``, as the pass of that name, and ``taylor`` ``|sum of s_t|``, the vector
    term of LLM-Pruner (arXiv 2305.11627) of the weight that reads the channel. HEAPr (ICLR 2026) also scores channels
    of single experts.
    """

    name: ClassVar[str] = "expert_channels"
    keeps_values: ClassVar[bool] = False
    takes_loss: ClassVar[bool] = True

    by: str = option("uniform", "only uniform: every expert loses as many", ("uniform",))
    score: str = option("fisher", "fisher: squared derivatives by a mask; taylor: their sum", ("fisher", "taylor"))
    heads: str = option("off", "only off: these scores are for inner widths", HEAD_CHOICES)

    def check(self) -> None:
        """Also refuse units that are no channels of experts."""
        super().check()
        if self.heads != "off" or self.experts or not self.ffn:
            raise RequestError(
                f"{self.name} is for inner widths only, not heads={self.heads}, experts={str(self.experts).lower()}, "
                f"ffn={str(self.ffn).lower()}",
                f"leave the three options out, and give heads and experts to another pass: reap,{self.name}",
            )

    @property
    def compares(self) -> bool:
        """All scores are changes of one loss."""
        return True

    def run(self, state: State) -> None:
        """Reorder the channels of every expert, then score, select, rewrite and shrink.

        Raises:
            RequestError: for a model without experts that have channels of their own; without calibration data.
            FxpruneError: for a loss or scores that are not finite.
        """
        coupling = state.subject.coupling
        assert coupling is not None, "the manager runs couple first"
        groups = [group for group in coupling.groups.values() if _inside_experts(group, coupling)]
        if not groups:
            raise RequestError(
                f"{self.name}: the model has no experts with inner channels of their own",
                "use fisher or taylor: in a dense model every channel has its own score",
            )
        sums = self._sums(state, groups)
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
        super().run(state)
        state.ledger.report[self.name][REORDERED] = [group.name for group in groups]

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward and one backward pass over the calibration data: the sum over all experts.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for a loss that is not finite.
        """
        sums = self._sums(state, groups)
        scores = {group.name: np.zeros(group.units) for group in groups}
        for (name, _), found in sums.items():
            scores[name] += np.abs(found)
        require_scores(scores, groups, {name for name, _ in sums}, self.name)
        return scores

    def _sums(self, state: State, groups: Sequence[Group]) -> Sums:
        """The scores of the units of every expert, and of those outside of experts, in nats per token; those of
        ``taylor`` with their sign."""
        by_place: dict[tuple[str, int], list[ConsumerMember]] = {}
        for reader in readers_of(groups, state.subject.graph):
            by_place.setdefault((reader.consumer.tensor, reader.consumer.dim), []).append(reader)
        sums: Sums = {}

        def receive(call: LinearCall, gradient: Tensor) -> None:
            products = (call.given.detach().double() * gradient.double()).movedim(call.channels, -1)
            products = products.reshape(-1, products.shape[-1])
            found = (products.square() / 2 if self.score == "fisher" else products).sum(0).cpu().numpy()
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
            runner, list(losses_of(self, state)), lambda: ActivationReceiver(runner, names, chosen, receive, sums.clear)
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
