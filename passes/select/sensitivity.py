"""Sensitivity: how the model's predictions change without some units, measured by setting their inputs to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ir import FxpruneError, Indices, RequestError
from ...ir.graph import Graph
from ...ir.groups import Group, Kind
from ...runtime.reporting import counted
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.turns import Around, Feed
from ...runtime.tensors import tensors_by_name
from ..couple.consumers import taking_in
from ..data import Inputs, Scores, is_inputs
from ..model.answers import ModelAnswer, answer_of, distance
from ..model.forward import logits_of
from ..model.inputs import batches_of, called_with
from ..score_cache import ScoreCache
from ..state import Data
from .allocate import LossCurve, counts_of, fill
from .costs import Costs
from .select import best_units

PROBES = 7
"""Number of widths of a group that are measured; the curve is linear between them."""


@dataclass
class DivergenceGauge:
    """The distance of a model's predictions on calibration data from the dense model's predictions.

    For a language model: the Kullback-Leibler divergence of the next-token distributions, in nats per token. For any
    other module: the increase of its losses, or the :func:`~fxprune.passes.model.answers.distance` of its answers.

    Attributes:
        runner: of the model, which is changed between measurements.
        windows: token batches ``[B, L]``; empty for other modules.
        losses: losses of other modules; empty without.
        dense: results of the dense model: log-probabilities ``[B, L, V]`` of every batch, on the CPU, or every loss, or
            every answer.
        inputs: batches of other inputs than text.
        keys: outputs that count in answers.
    """

    runner: BlockRunner
    windows: Sequence[Tensor]
    losses: Sequence[Any] = ()
    dense: list[Any] = field(default_factory=list)
    inputs: Sequence[Inputs] = ()
    keys: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        runner: BlockRunner,
        data: Data,
        *,
        samples: int,
        length: int,
        seed: int | None,
        batch: int,
        keys: Sequence[str] = (),
        who: str = "by=search",
    ) -> DivergenceGauge:
        """Read the dense model, which is this one as it is now; ``who`` is named in errors.

        Raises:
            RequestError: without calibration data or losses, with too little of it, or without weights to run.
        """
        if not data.losses and data.calibration is None:
            raise RequestError(
                f"{who} needs calibration text",
                "give --calib FILE, write generate first, or use by=global, which needs scores only",
            )
        if runner.device.type == "meta":
            raise RequestError(
                f"{who} runs the model, but its weights are not in memory", "use by=global, which needs scores only"
            )
        if is_inputs(data.calibration) and not data.losses:
            inputs = batches_of(data.calibration, samples=samples, length=length, seed=seed, batch=batch)
            answers = runner.run([_answers(one, keys) for one in inputs])
            return cls(runner, (), dense=answers, inputs=inputs, keys=keys)
        windows = () if data.losses else data.calibration.windows(length, samples, seed).split(batch)  # type: ignore[union-attr]
        feeds = [_log_probabilities(window) for window in windows]
        return cls(runner, windows, data.losses, runner.run(feeds or data.losses))

    def read(self, around: Around | None = None) -> float:
        """The present distance.

        Args:
            around: a context for each forward pass, as :meth:`BlockRunner.run` takes it.

        Raises:
            FxpruneError: when it is not finite.
        """
        if self.losses:
            pairs = zip(self.runner.run(self.losses, around), self.dense, strict=True)
            value = float(torch.stack([now - then for now, then in pairs]).mean())
        elif self.inputs:
            found = self.runner.run([_answers(one, self.keys) for one in self.inputs], around)
            value = sum(float(distance(*pair)) for pair in zip(found, self.dense, strict=True)) / len(found)
        else:
            feeds = [_divergence(*pair) for pair in zip(self.windows, self.dense, strict=True)]
            value = sum(self.runner.run(feeds, around)) / sum(window.numel() for window in self.windows)
        if not np.isfinite(value):
            raise FxpruneError(f"the distance from the dense model is {value}", "run in float32; check the calibration")
        return value


def _answers(batch: Inputs, keys: Sequence[str]) -> Feed:
    """What the model says of a batch, on the CPU."""

    def feed(model: nn.Module) -> ModelAnswer:
        return [part.cpu() for part in answer_of(called_with(batch)(model), batch, keys)]

    return feed


def _log_probabilities(window: Tensor) -> Feed:
    """Log-probabilities ``[B, L, V]`` of the next token, on the CPU."""

    def feed(model: nn.Module) -> Tensor:
        return functional.log_softmax(logits_of(model, window).float(), dim=-1).cpu()

    return feed


def _divergence(window: Tensor, dense: Tensor) -> Feed:
    """The summed divergence of the next-token distributions from those of the dense model."""

    def feed(model: nn.Module) -> float:
        now = functional.log_softmax(logits_of(model, window).float(), dim=-1)
        return float(functional.kl_div(now, dense.to(now.device), reduction="sum", log_target=True))

    return feed


def why_not_masked(group: Group) -> str | None:
    """Why setting units of a group to zero is not the same as removing them; None where it is."""
    if group.normalised:
        return "a normalisation runs over its units"
    return "a router chooses among its units" if group.kind is Kind.EXPERTS else None


class UnitMask:
    """Masks units of groups and restores them: the weights that read a masked unit are set to zero. Of a width that
    several blocks share, whose readers are many, all that belongs to the unit is.

    This equals removal unless a normalisation runs over the units.

    Args:
        runner: of the model. Inside :meth:`silencing` only, its weights are changed in place, or as they are brought
            into memory.
        graph: graph of the model.
        groups: the groups that may be masked.

    Raises:
        RequestError: for a group that masking does not remove, because a normalisation runs over it or a router chooses
            among its units.
    """

    def __init__(self, runner: BlockRunner, graph: Graph, groups: Sequence[Group]) -> None:
        for group in groups:
            if (why := why_not_masked(group)) is not None:
                raise RequestError(
                    f"by=search sets units to zero, which for {group.name} is not the same as removing them: {why}",
                    "use by=global, or channels=false, experts=false",
                )
        self._members = {
            group.name: group.members if group.kind is Kind.CHANNELS else taking_in(group, graph) for group in groups
        }
        self._groups = {group.name: group for group in groups}
        self._residence = runner.residence
        self._gone: dict[str, list[tuple[int, Tensor]]] = {}
        self._tensors, self._whole = {}, {}
        if runner.residence is None:
            named = tensors_by_name(runner.model)
            self._tensors = {m.tensor: named[m.tensor] for members in self._members.values() for m in members}
            self._whole = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    @contextmanager
    def silencing(self) -> Iterator[None]:
        """Inside, units can be masked; afterwards all weights are restored."""
        if self._residence is not None:
            self._residence.edit = self._masked
        try:
            yield
        finally:
            self.keep({})
            if self._residence is not None:
                self._residence.edit = None

    @torch.no_grad()
    def keep(self, kept: Mapping[str, Indices]) -> None:
        """Mask all units of the named groups except the given ones; restore everything else."""
        for name in self._gone.keys() & self._tensors.keys():
            self._tensors[name].copy_(self._whole[name])
        self._gone = {}
        for name, stay in kept.items():
            group = self._groups[name]
            alive = np.isin(np.arange(group.units), stay)
            for member in self._members[name]:
                units = group.unit_map(member.axis)
                gone = torch.from_numpy(np.flatnonzero((units >= 0) & ~alive[units]))
                self._gone.setdefault(member.tensor, []).append((member.dim, gone))
        for name in self._gone.keys() & self._tensors.keys():
            self._mask(name, self._tensors[name])

    def _masked(self, name: str, value: Tensor) -> Tensor:
        return self._mask(name, value.clone()) if name in self._gone else value

    def _mask(self, name: str, value: Tensor) -> Tensor:
        for dim, gone in self._gone[name]:
            value.index_fill_(dim, gone.to(value.device), 0.0)
        return value


@dataclass(frozen=True)
class MeasuredAllocation:
    """Allocation by measurements: first every group alone, then all groups together.

    Attributes:
        divergence, silencer: both for the model.
        groups: the groups by name.
        scores: scores of their units; units with low scores are removed first.
        saved: stores measurements of single groups, or has them from another run; None without a score file.
    """

    divergence: DivergenceGauge
    unit_mask: UnitMask
    groups: Mapping[str, Group]
    scores: Mapping[str, Scores]
    saved: ScoreCache | None = None

    def measured(self, curve: LossCurve) -> LossCurve:
        """The curve with measured losses: each group is cut alone; losses between measured counts are interpolated."""
        probes = probed(curve)
        losses = np.zeros(len(curve.counts))
        for name in curve.groups:
            found = self._alone(name, [int(curve.counts[at]) for at in probes[:-1]])
            losses += np.interp(np.arange(len(curve.counts)), probes, [*found, 0.0])
        # Measurements are noisy, but fewer units of a group must never count as better.
        return replace(curve, losses=np.maximum.accumulate(losses[::-1])[::-1])

    def _alone(self, name: str, counts: Sequence[int]) -> Sequence[float]:
        def measure() -> Sequence[float]:
            return [self.distance({name: count}) for count in counts]

        return measure() if self.saved is None else self.saved.distances(name, counts, measure)

    def distance(self, counts: Mapping[str, int]) -> float:
        """The distance of the model when every group keeps its ``counts`` best units."""
        with self.unit_mask.silencing():
            self.unit_mask.keep({n: best_units(self.groups[n], self.scores[n], c) for n, c in counts.items()})
            return self.divergence.read()

    def refined(
        self,
        curves: Sequence[LossCurve],
        costs: Costs,
        chosen: Mapping[str, int],
        limit: int,
        *,
        moves: int,
        seed: int = 0,
    ) -> dict[str, int]:
        """Move budget between two random groups, and keep a move that lowers the distance (evolution with one parent).

        Args:
            curves: curves of single groups.
            costs: cost model.
            chosen: start: group name -> units to keep.
            limit: what the model may cost.
            moves: number of moves to try.
            seed: random seed of the moves.
        """
        generator = np.random.default_rng(seed)
        levels = [int(np.searchsorted(c.counts, chosen[c.groups[0]])) for c in curves]
        best = self.distance(counts_of(curves, levels))
        for _ in counted(range(moves if len(curves) > 1 else 0), "exchanges"):
            moved = _moved(curves, costs, levels, limit, generator)
            if moved == levels:
                continue
            distance = self.distance(counts_of(curves, moved))
            if distance < best:
                best, levels = distance, moved
        return counts_of(curves, levels)


def probed(curve: LossCurve) -> npt.NDArray[np.int64]:
    """The levels of a curve that are measured; at the last one all units are kept, which needs no measurement."""
    return np.unique(np.linspace(0, len(curve.counts) - 1, PROBES).round().astype(np.int64))


def _moved(
    curves: Sequence[LossCurve], costs: Costs, levels: Sequence[int], limit: int, generator: np.random.Generator
) -> list[int]:
    """Cut one group by up to an eighth of its levels, give the savings to another, and spend the rest anywhere."""
    giver, taker = (int(at) for at in generator.choice(len(curves), 2, replace=False))
    moved = list(levels)
    step = int(generator.integers(1, max(2, len(curves[giver].counts) // 8)))
    moved[giver] = max(0, moved[giver] - step)
    saved = curves[giver].costs[levels[giver]] - curves[giver].costs[moved[giver]]
    wanted = curves[taker].costs[levels[taker]] + saved
    moved[taker] = int(np.searchsorted(curves[taker].costs, wanted, side="right")) - 1
    if costs.of(counts_of(curves, moved)) > limit:
        return list(levels)
    return fill(curves, costs, moved, limit)
