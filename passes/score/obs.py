"""obs: remove the units with the smallest error after the remaining weights are refitted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...ir import FxpruneError
from ...ir.groups import Group, Kind
from ...ir.options import option
from ...runtime.ranks import Ranks
from ..calibrate.dense_and_pruned import DenseAndPruned
from ..calibrate.least_squares import Moments, ObsSolver
from ..calibrate.linear_maps import LinearMap
from ..calibrate.map_moments import moments_of
from ..calibrate.observed_calls import Visit
from ..calibrate.shared_moments import shared_moments
from ..data import Scores
from ..select.allocate import UNIFORM
from ..select.select import kept_count
from ..state import State
from .consumer_scores import ConsumerMember, ConsumerScored, readers_of, require_scores
from .output_metrics import MetricOf, output_metrics

METRICS = ("loss", "outputs")

HEAD_KINDS = frozenset({Kind.HEADS, Kind.KV_HEADS, Kind.QUERY_HEADS})


@dataclass(frozen=True, kw_only=True)
class Obs(ConsumerScored):
    """Remove the units that the others can best replace (OBS: OSSCAR, SlimGPT, Tyr-the-Pruner, arXiv 2503.09657).

    Units are removed in rounds, and the costs of the remaining units are computed again after every round: heads one by
    one, other widths in ``rounds`` steps. Layers are scored in order: all layers before are already cut and refitted,
    and the outputs are compared with the dense model's. With a target or another ``by`` than uniform, widths are
    decided after the scores, so every layer is scored with dense inputs. With ``metric=loss``, errors are weighed by
    their effect on the loss, and scores of all groups can be compared. Write ``compensate`` after it for the final
    refit.
    """

    name: ClassVar[str] = "obs"

    rounds: int = option(
        16, "how often scores of units other than heads are computed again", at_least=1,
        hint="use 1 to score once, or 16",
    )  # fmt: skip
    damping: float = option(
        0.01, "strength of the pull to the present weights, relative to the mean second moment", at_least=0,
        hint="use 0.01, or 0 for none",
    )  # fmt: skip
    metric: str = option(
        "loss", "loss: output errors are weighed by their effect on the loss; outputs: all count equally", METRICS
    )
    sequential: bool = option(
        True, "true: layers are scored after the layers before them were pruned; false: with dense inputs"
    )

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """For every unit the total error when it is removed, with all units that were removed before it.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for second moments that are not finite, or singular without damping.
        """
        metric_of = output_metrics(self, state, groups) if self.metric == "loss" else _all_count_equally
        graph, dense = state.subject.graph, state.subject.runner
        places = {(r.consumer.tensor, r.consumer.dim): r for r in readers_of(groups, graph)}
        runners = dense, dense.twin() if self._refits else dense
        pairs = DenseAndPruned.between(graph, runners, self.feeds(state.data, state.ranks), list(places))
        sets = self._sets(pairs, [places[consumer.tensor, consumer.dim] for consumer in pairs.consumers])
        scores = {group.name: np.zeros(group.units) for group in groups}
        seen: set[str] = set()
        with closing(pairs.visits([[reader.consumer for reader in one.readers] for one in sets])) as visits:
            for visit in visits:
                for name, found in self._of_set(sets[visit.number], _moments(visit, state.ranks), metric_of):
                    scores[name] += found
                    seen.add(name)
        require_scores(scores, groups, seen, self.name)
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
        for name, found in groupby(one.readers, key=lambda reader: reader.group.name):
            readers = list(found)
            yield name, self._of_group(readers, moments, metric_of, rounds=name in one.rounds)

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
        return self.sequential and not self._open

    @property
    def compares(self) -> bool:
        """True with ``metric=loss``: all scores are changes of one loss."""
        return self.metric == "loss"

    @property
    def for_one_budget(self) -> bool:
        """False when all units of each group are scored, for any budget."""
        return not self._open

    @property
    def _open(self) -> bool:
        """Whether widths are decided after the scores. Then all units of each group are scored, and every layer gets
        dense inputs."""
        return self.target is not None or self.by != UNIFORM

    def losses(self, group: Group, scores: Scores) -> Scores:
        """The scores: the total error when a unit is removed; for channels, the scores are summed as usual."""
        if group.kind is Kind.CHANNELS:
            return super().losses(group, scores)
        rows = np.sort(scores.reshape(-1, group.size), axis=1)
        return np.concatenate([np.zeros(1), np.maximum.accumulate(rows.max(0))])

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
                solver = ObsSolver.of(found, at.whole(), self.damping, columns, metric_of(at))
            except FxpruneError as error:
                raise FxpruneError(f"{at}: {error.message}", error.hint) from error
            solvers.append((at, solver))
        return solvers

    def _in_rounds(self, group: Group, solvers: Sequence[ObsSolver]) -> Scores:
        """Remove units, cheapest first, until only the units to keep are left."""
        rows = group.units // group.size
        stay = 1 if self._open else kept_count(group.size, self.ratio, self.step(group))
        excess = group.size - stay
        scores, total = np.zeros((rows, group.size)), 0.0
        alive = np.ones((rows, group.size), dtype=bool)
        at_once = 1 if group.kind in HEAD_KINDS else max(1, math.ceil(excess / self.rounds))
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


def _joined(sets: Sequence[_Set]) -> list[_Set]:
    """Sets with neighbours that have their turn at the same place put together."""
    joined: list[_Set] = []
    for one in sets:
        if joined and joined[-1].places == one.places and len(one.places) == 1 and None not in one.places:
            joined[-1] = _Set(joined[-1].readers + one.readers, joined[-1].rounds | one.rounds, one.places)
        else:
            joined.append(one)
    return joined


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
