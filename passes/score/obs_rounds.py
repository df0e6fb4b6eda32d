"""Scores of obs: units are removed in rounds, and what stays is refitted."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ...ir import FxpruneError
from ...ir.groups import HEAD_KINDS, Group, Kind
from ...runtime.ranks import Ranks
from ...runtime.reporting import counted
from ..calibrate.dense_and_pruned import DenseAndPruned
from ..calibrate.least_squares import Moments, ObsSolver
from ..calibrate.linear_maps import LinearMap
from ..calibrate.map_moments import moments_of
from ..calibrate.observed_calls import Visit
from ..calibrate.shared_moments import shared_moments
from ..couple.consumers import Consumer
from ..data import Scores
from ..select.select import kept_count
from ..state import State
from .consumer_scores import ConsumerMember, readers_of, require_scores
from .obs import Obs
from .output_metrics import MetricOf, output_metrics


@dataclass(frozen=True)
class ObsRounds:
    """Scores units for ``obs``.

    Attributes:
        obs: the pass, with its options.
    """

    obs: Obs

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """The scores, as :meth:`~.obs.Obs.scores` returns them."""
        metric_of = output_metrics(self.obs, state, groups) if self.obs.metric == "loss" else _all_count_equally
        graph, dense = state.subject.graph, state.subject.runner
        places: dict[tuple[str, int], list[ConsumerMember]] = {}
        for reader in readers_of(groups, graph):
            places.setdefault((reader.consumer.tensor, reader.consumer.dim), []).append(reader)
        runners = dense, dense.twin() if self._refits else dense
        pairs = DenseAndPruned.between(graph, runners, self.obs.feeds(state.data, state.ranks), list(places))
        sets = self._sets(pairs, [reader for one in pairs.consumers for reader in places[one.tensor, one.dim]])
        scores = {group.name: np.zeros(group.units) for group in groups}
        seen: set[str] = set()
        with closing(pairs.visits([one.consumers for one in sets])) as visits:
            for visit in counted(visits, "sets of weights", len(sets)):
                for name, found in self._of_set(sets[visit.number], _moments(visit, state.ranks), metric_of):
                    scores[name] += found
                    seen.add(name)
        require_scores(scores, groups, seen, self.obs.name)
        return scores

    def _sets(self, pairs: DenseAndPruned, readers: Sequence[ConsumerMember]) -> list[_Set]:
        """What is observed together: the linear maps that read one activation; all of a block when none is refitted."""
        runs = [list(found) for _, found in groupby(readers, key=lambda reader: reader.group.name)]
        times = Counter(run[0].group.name for run in runs)
        sets: list[_Set] = []
        for run in runs:
            group = run[0].group
            if times[group.name] == 1 and group.kind is not Kind.CHANNELS:
                sets.append(_Set(run, {group.name}, {pairs.place(reader.consumer) for reader in run}))
            else:
                for place, found in groupby(run, key=lambda reader: pairs.place(reader.consumer)):
                    sets.append(_Set(list(found), set(), {place}))
        return sets if self._refits else _joined(sets)

    def _of_set(
        self, one: _Set, moments: dict[LinearMap, Moments], metric_of: MetricOf
    ) -> Iterator[tuple[str, Scores]]:
        """Names and scores of groups; the solvers of one, and the moments of the next, are in memory."""
        left, metrics = Counter(reader.consumer.tensor for reader in one.readers), dict[LinearMap, Tensor | None]()

        def metric(at: LinearMap) -> Tensor | None:
            found = metrics.pop(at) if at in metrics else metric_of(at)
            if left[at.tensor]:  # another group has units in the same inputs, such as heads and channels of values
                metrics[at] = found
            return found

        for name, found in groupby(one.readers, key=lambda reader: reader.group.name):
            readers = list(found)
            left.subtract(reader.consumer.tensor for reader in readers)
            mine = _taken(moments, {reader.consumer.tensor for reader in readers}, left)
            yield name, self._of_group(readers, mine, metric, rounds=name in one.rounds)

    def _of_group(
        self,
        readers: Sequence[ConsumerMember],
        moments: dict[LinearMap, Moments],
        metric_of: MetricOf,
        *,
        rounds: bool,
    ) -> Scores:
        """Scores from linear maps that read one group; their moments are used up."""
        group, solvers = readers[0].group, self._solvers(readers, moments, metric_of)
        if not rounds:
            return sum((s.costs().cpu().numpy() for _, s in solvers), np.zeros(group.units))
        scores = self._in_rounds(group, [solver for _, solver in solvers])
        if self._refits:
            for at, solver in solvers:
                at.put(solver.refitted())
        return scores

    @property
    def _refits(self) -> bool:
        """Whether a layer is scored with all layers before it pruned and refitted."""
        return self.obs.sequential and self.obs.for_one_budget

    def _solvers(
        self, readers: Sequence[ConsumerMember], moments: dict[LinearMap, Moments], metric_of: MetricOf
    ) -> list[tuple[LinearMap, ObsSolver]]:
        """Solvers of the linear maps among ``moments`` that some readers are; their moments are used up."""
        by_tensor = {reader.consumer.tensor: reader for reader in readers}
        solvers = []
        for at in [at for at in moments if at.tensor in by_tensor]:
            found = moments.pop(at)
            if not found.count:
                continue
            try:
                columns = _columns(at, by_tensor[at.tensor])
                solver = ObsSolver.of(found, at.whole(), self.obs.damping, columns, metric_of(at))
            except FxpruneError as error:
                raise FxpruneError(f"{at}: {error.message}", error.hint) from error
            solvers.append((at, solver))
        return solvers

    def _in_rounds(self, group: Group, solvers: Sequence[ObsSolver]) -> Scores:
        """Remove units, cheapest first, until only the units to keep are left."""
        rows = group.units // group.size
        stay = kept_count(group.size, self.obs.ratio, self.obs.step(group)) if self.obs.for_one_budget else 1
        excess = group.size - stay
        scores, total = np.zeros((rows, group.size)), 0.0
        alive = np.ones((rows, group.size), dtype=bool)
        at_once = 1 if group.kind in HEAD_KINDS else max(1, math.ceil(excess / self.obs.rounds))
        while True:
            costs = sum((s.costs().cpu().numpy() for s in solvers), np.zeros(group.units)).reshape(rows, -1)
            costs[~alive] = np.inf
            if excess <= 0:
                scores[alive] = total + costs[alive]
                return scores.ravel()
            count = min(at_once, excess)
            order = np.argsort(costs, axis=1, kind="stable")[:, :count]
            going = np.take_along_axis(costs, order, axis=1)
            np.put_along_axis(scores, order, total + going.cumsum(axis=1), axis=1)
            np.put_along_axis(alive, order, False, axis=1)
            units = (order + np.arange(rows)[:, None] * group.size).ravel().tolist()
            for solver in solvers:
                solver.remove(units)
            total += float(going.sum())
            excess -= count


@dataclass
class _Set:
    """Linear maps that are observed together.

    Attributes:
        readers: the linear maps, in execution order.
        rounds: names of the groups of which all readers are here, one after the other, and whose units go in rounds.
        places: where they have their turns.
    """

    readers: list[ConsumerMember]
    rounds: set[str]
    places: set[str | None]

    @property
    def consumers(self) -> list[Consumer]:
        """The linear maps, each once."""
        return list({reader.consumer.order: reader.consumer for reader in self.readers}.values())


def _joined(sets: Sequence[_Set]) -> list[_Set]:
    """Sets with neighbours that have their turn at the same place put together."""
    joined: list[_Set] = []
    for one in sets:
        if joined and joined[-1].places == one.places and len(one.places) == 1 and None not in one.places:
            joined[-1] = _Set(joined[-1].readers + one.readers, joined[-1].rounds | one.rounds, one.places)
        else:
            joined.append(one)
    return joined


def _taken(moments: dict[LinearMap, Moments], tensors: set[str], left: Mapping[str, int]) -> dict[LinearMap, Moments]:
    """The moments of some weights; those that others still want (``left``) are copied, which a solver changes."""
    mine = [at for at in moments if at.tensor in tensors]
    return {at: copy.deepcopy(moments[at]) if left[at.tensor] else moments.pop(at) for at in mine}


def _moments(visit: Visit, ranks: Ranks) -> dict[LinearMap, Moments]:
    """The moments of all ranks, on all."""
    shared = shared_moments(moments_of(visit.calls), visit, ranks, everywhere=True)
    return {at: moments for at, (_, moments) in shared.items()}


def _all_count_equally(at: LinearMap) -> None:
    """Outputs of all linear maps are weighed by the identity."""
    del at


def _columns(at: LinearMap, reader: ConsumerMember) -> Tensor:
    """The inputs that go with each unit, int64 ``[units, most]``; -1 for none."""
    units = reader.units(at.weight.shape[1])
    inputs = np.flatnonzero(units >= 0)
    inputs = inputs[np.argsort(units[inputs], kind="stable")]
    counts = np.bincount(units[inputs], minlength=reader.group.units)
    rank = np.arange(len(inputs)) - np.repeat(counts.cumsum() - counts, counts)
    columns = np.full((reader.group.units, max(1, counts.max())), -1)
    columns[units[inputs], rank] = inputs
    return torch.from_numpy(columns)
