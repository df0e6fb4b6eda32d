"""Scores from the inputs of the weights that read a group: which weights these are, and what their calls show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...ir import FxpruneError, Indices, RequestError
from ...ir.graph import Graph
from ...ir.groups import Group, Occurrence
from ...runtime.streaming.block_runner import BlockRunner
from ..calibrate.batches import Feed, LinearCall, matrix, without_data
from ..calibrate.recorded_calls import recorded_calls
from ..calibrate.spread import RunningVariance, merged
from ..couple.consumers import Consumer, find_consumers, taking_in
from ..data import Scores
from ..state import State
from .consumer_pass import ColumnScored


@dataclass(frozen=True)
class ConsumerMember:
    """A weight that reads the units of a group.

    Attributes:
        group: the group whose units it reads.
        member: the weight and its input dimension.
        consumer: where the weight is used.
    """

    group: Group
    member: Occurrence
    consumer: Consumer

    def units(self, columns: int) -> Indices:
        """The unit of every input column of a call, -1 for none: int64 ``[columns]``.

        A convolution reads each channel at every position of its kernel.
        """
        found = self.group.unit_map(self.member.axis)
        return np.repeat(found, columns // len(found))


def readers_of(groups: Sequence[Group], graph: Graph) -> list[ConsumerMember]:
    """The members that may read units of the groups, in execution order."""
    found = []
    for group in groups:
        members = taking_in(group, graph)
        by_place = {(m.tensor, m.dim): m for m in members}
        consumers = find_consumers(graph, by_place)
        found += [ConsumerMember(group, by_place[c.tensor, c.dim], c) for c in consumers]
    return sorted(found, key=lambda reader: reader.consumer.order)


def visit(
    runner: BlockRunner,
    feeds: Sequence[Feed],
    readers: Sequence[ConsumerMember],
    receive: Callable[[ConsumerMember, LinearCall], None],
) -> None:
    """One pass over the calibration data; passes every call of a reader's weight to ``receive`` as it happens.

    Calls that contract another dimension of the weight are ignored.
    """
    by_place: dict[tuple[str, int], list[ConsumerMember]] = {}
    for reader in readers:
        by_place.setdefault((reader.consumer.tensor, reader.consumer.dim), []).append(reader)

    def route(call: LinearCall) -> None:
        for reader in by_place.get((call.tensor, call.dim), ()):
            receive(reader, call)

    with recorded_calls(runner, [tensor for tensor, _ in by_place], route) as around:
        runner.run(feeds, around)


def column_scores(step: ColumnScored, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
    """The scores of a pass that scores single columns, as :meth:`ColumnScored.scores` returns them."""
    runner = state.subject.runner
    readers = readers_of(groups, state.subject.graph)
    spreads: dict[tuple[int, int | None], tuple[ConsumerMember, LinearCall, RunningVariance]] = {}

    def receive(reader: ConsumerMember, call: LinearCall) -> None:
        key = (readers.index(reader), call.expert)
        if key not in spreads:
            spreads[key] = (reader, without_data(call), RunningVariance())
        spreads[key][2].add(call.x)

    visit(runner, step.feeds(state.data, state.ranks), readers, receive)
    scores = {group.name: np.zeros(group.units) for group in groups}
    whole = merged({key: spread for key, (_, _, spread) in spreads.items()}, state.ranks)
    for key in state.ranks.own_keys(spreads):
        reader, call, _ = spreads[key]
        if not whole[key].count:
            continue
        columns = step.columns(weight_of(runner, call), whole[key]).cpu().numpy()
        units = reader.units(len(columns))
        there = units >= 0
        found = step.gathered(reader.group, columns[there], units[there])
        scores[reader.group.name][: len(found)] += found
    scores = state.ranks.sum_arrays(scores)
    seen = state.ranks.union({reader.group.name for reader, _, _ in spreads.values()})
    require_scores(scores, groups, seen, step.name)
    return scores


def require_scores(scores: Mapping[str, Scores], groups: Sequence[Group], seen: set[str], what: str) -> None:
    """Check that a recorded call read every group, and that all scores are finite.

    Raises:
        RequestError: with the first group whose units no recorded call read.
        FxpruneError: with the first group whose scores are not finite.
    """
    for group in groups:
        if group.name not in seen:
            raise RequestError(
                f"{what} cannot score {group.name}: no linear map or convolution reads it",
                "use taylor or magnitude, whose scores come from the weights",
            )
        if not np.isfinite(scores[group.name]).all():
            raise FxpruneError(
                f"the {what} scores of {group.name} are not finite", "run in float32; check the calibration text"
            )


def weight_of(runner: BlockRunner, call: LinearCall) -> Tensor:
    """The part of a weight that a call used, as float64 ``[n, k]``."""
    return matrix(runner.value(call.tensor), call).double()
