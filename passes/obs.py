"""obs: units go whose removal leaves the smallest error after the rest was refitted."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch

from ..ir import FxpruneError
from ..ir.groups import Group, Kind
from ..ir.options import option
from ..runtime.tensors import tensors_by_name
from .allocate import UNIFORM
from .data import Scores
from .inputs import InputScored, Reader, readers_of, require_scores
from .least_squares import Moments, Surgeon
from .pairs import Map, Pairs
from .select import kept_count
from .sensed import backward, losses_of
from .state import State
from .statistics import Feed, Seen
from .streams import Stream

METRICS = ("loss", "outputs")

HEADS = frozenset({Kind.HEADS, Kind.KV_HEADS, Kind.QUERY_HEADS})


Metrics = dict[tuple[str, int | None], torch.Tensor]
"""(tensor, expert) -> metric of the outputs, ``[n, n]`` float64."""


@dataclass(frozen=True, kw_only=True)
class Obs(InputScored):
    """Remove the units that the rest can best make up for (OBS: OSSCAR, SlimGPT, Tyr-the-Pruner, arXiv 2503.09657).

    Units go in rounds, and what each of the others costs is computed anew after every round: heads one by one, other
    widths in ``rounds``. Layers are taken in order, each with those before it already cut and refitted and its outputs
    compared with the dense model's; where a budget is shared out only afterwards, all with dense inputs. With
    ``metric=loss`` errors count as the loss feels them, and scores of all groups compare. Write ``compensate`` after
    it, which refits for good.
    """

    name: ClassVar[str] = "obs"

    rounds: int = option(
        16, "how often scores of units other than heads are computed anew", at_least=1,
        hint="use 1 to score once, or 16",
    )  # fmt: skip
    damping: float = option(
        0.01, "pull towards the weights as they are, relative to the mean second moment", at_least=0,
        hint="use 0.01, or 0 for none",
    )  # fmt: skip
    metric: str = option(
        "loss", "loss: errors of a map's outputs count as the loss feels them; outputs: all alike", METRICS
    )
    sequential: bool = option(
        True, "layers see what the layers before them became; false: statistics of the dense model"
    )

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """For every unit the error that has been reached when it goes.

        Raises:
            RequestError: without calibration data, or for a group that no linear map reads.
            FxpruneError: for second moments that are not finite, or singular without damping.
        """
        sequential = self.sequential and not self._open
        model = copy.deepcopy(state.subject.model) if sequential else state.subject.model
        metrics = self._metrics(state, groups) if self.metric == "loss" else {}
        pairs = self._pairs(state, model, self.feeds(state.data), groups)
        by_place = {(r.consumer.tensor, r.consumer.dim): r for r in readers_of(groups, state.subject.graph)}
        scores = {group.name: np.zeros(group.units) for group in groups}
        seen: set[str] = set()
        ordered = [by_place[c.tensor, c.dim] for c in pairs.consumers]
        for name, found in groupby(ordered, key=lambda reader: reader.group.name):
            readers = list(found)
            group = readers[0].group
            alone = name not in seen and sum(r.group.name == name for r in ordered) == len(readers)
            rounds = alone and group.kind is not Kind.CHANNELS
            scores[name] += self._of_group(group, self._surgeons(pairs, readers, metrics), rounds=rounds)
            seen.add(name)
        require_scores(scores, groups, seen, self.name)
        return scores

    def _of_group(self, group: Group, surgeons: Sequence[tuple[Map, Surgeon]], *, rounds: bool) -> Scores:
        """Scores by maps that read one activation; the statistics of no others are in memory then."""
        if not rounds:
            return sum((s.costs().cpu().numpy() for _, s in surgeons), np.zeros(group.units))
        scores = self._in_rounds(group, [surgeon for _, surgeon in surgeons])
        if self.sequential and not self._open:
            for at, surgeon in surgeons:
                at.put(surgeon.weight)
        return scores

    @property
    def compares(self) -> bool:
        """With ``metric=loss`` all scores are changes of one loss."""
        return self.metric == "loss"

    @property
    def for_one_budget(self) -> bool:
        """Unless each group is followed to its last unit."""
        return not self._open

    @property
    def _open(self) -> bool:
        """Whether it is decided only afterwards how many units go: then each group is followed to its last unit, and
        no layer knows what the layers before it will be."""
        return self.target is not None or self.by != UNIFORM

    def losses(self, group: Group, scores: Scores) -> Scores:
        """The scores themselves: the error that has been reached when a unit goes; of channels, each for itself."""
        if group.kind is Kind.CHANNELS:
            return super().losses(group, scores)
        rows = np.sort(scores.reshape(-1, group.size), axis=1)
        return np.concatenate([np.zeros(1), np.maximum.accumulate(rows.max(0))])

    def _pairs(self, state: State, model: torch.nn.Module, batches: Sequence[Feed], groups: Sequence[Group]) -> Pairs:
        graph = state.subject.graph
        places = [(r.consumer.tensor, r.consumer.dim) for r in readers_of(groups, graph)]
        dense = Stream.of(state.subject.model, batches)
        return Pairs.between(graph, dense, dense if model is dense.model else Stream.of(model, batches), places)

    def _metrics(self, state: State, groups: Sequence[Group]) -> Metrics:
        """For every map the root of its outputs' Fisher information, ``(E[g g^T] / tokens)^1/2``.

        With ``g`` the gradient of the summed loss at the outputs of one token, errors ``e`` of the outputs change the
        loss by about ``1/2 sum (e^T E[g g^T] e) / T`` nats a token, ``T`` tokens in all (the Kronecker factors of
        Martens and Grosse 2015; for pruning the LLM Surgeon, arXiv 2312.17244).
        """
        tensors = tensors_by_name(state.subject.model)
        watched = {r.consumer.tensor: tensors[r.consumer.tensor] for r in readers_of(groups, state.subject.graph)}
        sums: dict[tuple[str, int | None], torch.Tensor] = {}
        predictions = 0
        for number, loss in enumerate(losses_of(self, state.data)):
            calls: list[Seen] = []
            gradients, count = backward(
                state.subject.model,
                loss,
                watched,
                calls.append,
                number=number,
                wanted=lambda calls=calls: [seen.gave for seen in calls],  # type: ignore[misc]
            )
            predictions += count
            for seen, gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    rows = gradient.double().movedim(seen.channels, -1).flatten(0, -2)
                    key = (seen.tensor, seen.expert)
                    sums[key] = sums.get(key, 0.0) + rows.T @ rows
        return {key: _root(total) / predictions for key, total in sums.items()}

    def _surgeons(self, pairs: Pairs, readers: Sequence[Reader], metrics: Metrics) -> list[tuple[Map, Surgeon]]:
        found: dict[Map, Moments] = {}
        for reader in readers:
            for at, x, y, _ in pairs.observed([reader.consumer]):
                if at not in found:
                    found[at] = Moments.empty(at.unknowns, y.shape[1], x.device)
                found[at].add(torch.cat([x, x.new_ones(len(x), 1)], 1) if at.bias is not None else x, y)
        by_tensor = {reader.consumer.tensor: reader for reader in readers}
        surgeons = []
        for at in list(found):
            moments = found.pop(at)
            if not moments.count:
                continue
            try:
                columns = _columns(at, by_tensor[at.tensor])
                metric = metrics.get((at.tensor, at.expert))
                surgeon = Surgeon.of(moments, at.whole(), self.damping, columns, metric)
            except FxpruneError as error:
                raise FxpruneError(f"{at}: {error.message}", error.hint) from error
            surgeons.append((at, surgeon))
        return surgeons

    def _in_rounds(self, group: Group, surgeons: Sequence[Surgeon]) -> Scores:
        """Take units out, cheapest first, until as many are left as stay."""
        rows = group.units // group.size
        stay = 1 if self._open else kept_count(group.size, self.ratio, self.step(group))
        excess = group.size - stay
        scores, total = np.zeros((rows, group.size)), 0.0
        alive = np.ones((rows, group.size), dtype=bool)
        at_once = 1 if group.kind in HEADS else max(1, math.ceil(excess / self.rounds))
        while True:
            costs = sum((s.costs().cpu().numpy() for s in surgeons), np.zeros(group.units)).reshape(rows, -1)
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
            for surgeon in surgeons:
                surgeon.remove(units)
            total += float(going.sum())
            excess -= count


def _root(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _columns(at: Map, reader: Reader) -> list[torch.Tensor]:
    units = reader.units(at.weight.shape[1])
    return [torch.from_numpy(np.flatnonzero(units == unit)).to(at.weight.device) for unit in range(reader.group.units)]
