"""Scores from the inputs of the weights that read a group: the base of wanda, flap, activation, fisher and obs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...ir import FxpruneError, Indices, RequestError
from ...ir.graph import Graph
from ...ir.groups import Group, Occurrence
from ...ir.options import option, seed_option
from ...runtime.ranks import Ranks
from ...runtime.streaming.block_runner import BlockRunner
from ..calibrate.batches import Feed, LinearCall, calibration_feeds, matrix, without_data
from ..calibrate.recorded_calls import recorded_calls
from ..calibrate.spread import RunningVariance, merged
from ..couple.consumers import Consumer, find_consumers, taking_in
from ..data import Scores
from ..prune import Prune
from ..state import Data, State


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


@dataclass(frozen=True, kw_only=True)
class ConsumerScored(Prune):
    """A pruning pass whose scores come from the inputs of the weights that read the units."""

    samples: int = option(64, "calibration windows", at_least=1)
    length: int = option(128, "tokens in a calibration window", at_least=1)
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")
    batch: int = option(8, "windows in one forward pass", at_least=1)

    def feeds(self, data: Data, ranks: Ranks) -> list[Feed]:
        """The calibration batches of this rank, as :func:`~.batches.calibration_feeds` makes them."""
        who = f"{self.name} scores need"
        return calibration_feeds(
            data, who, samples=self.samples, length=self.length, seed=self.seed, batch=self.batch, ranks=ranks
        )


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


@dataclass(frozen=True, kw_only=True)
class ColumnScored(ConsumerScored):
    """Scores of single columns, from their weights and the variance of their inputs, combined into units."""

    @abstractmethod
    def columns(self, weight: Tensor, spread: RunningVariance) -> Tensor:
        """The score of every input of a linear map, float64 ``[k]``.

        Args:
            weight: float64 ``[n, k]``.
            spread: count, mean and variance of the inputs.
        """

    def gathered(self, group: Group, columns: Scores, units: Indices) -> Scores:
        """Scores of units from the scores of their columns: the sum."""
        del group
        return np.bincount(units, weights=columns).astype(np.float64)

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward pass over the calibration data; stores one vector per linear map.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for inputs that are not finite.
        """
        runner = state.subject.runner
        readers = readers_of(groups, state.subject.graph)
        spreads: dict[tuple[int, int | None], tuple[ConsumerMember, LinearCall, RunningVariance]] = {}

        def receive(reader: ConsumerMember, call: LinearCall) -> None:
            key = (readers.index(reader), call.expert)
            if key not in spreads:
                spreads[key] = (reader, without_data(call), RunningVariance())
            spreads[key][2].add(call.x)

        visit(runner, self.feeds(state.data, state.ranks), readers, receive)
        scores = {group.name: np.zeros(group.units) for group in groups}
        whole = merged({key: spread for key, (_, _, spread) in spreads.items()}, state.ranks)
        for key in state.ranks.own_keys(spreads):
            reader, call, _ = spreads[key]
            if not whole[key].count:
                continue
            columns = self.columns(weight_of(runner, call), whole[key]).cpu().numpy()
            units = reader.units(len(columns))
            there = units >= 0
            found = self.gathered(reader.group, columns[there], units[there])
            scores[reader.group.name][: len(found)] += found
        scores = state.ranks.sum_arrays(scores)
        seen = state.ranks.union({reader.group.name for reader, _, _ in spreads.values()})
        require_scores(scores, groups, seen, self.name)
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
