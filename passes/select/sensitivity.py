"""Sensitivity: how the model's predictions change without some units, measured by setting their inputs to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...ir import FxpruneError, Indices, RequestError
from ...ir.graph import Graph
from ...ir.groups import Group, Kind
from ...runtime.tensors import tensors_by_name
from ..couple.consumers import taking_in
from ..data import Scores
from ..model.forward import inference, logits_of
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
    other module: the increase of its losses.

    Attributes:
        model: the model; it is changed between measurements.
        windows: token batches ``[B, L]``; empty for other modules.
        losses: losses of other modules; empty for language models.
        dense: results of the dense model: log-probabilities ``[B, L, V]`` of every batch, or every loss.
    """

    model: nn.Module
    windows: Sequence[Tensor]
    losses: Sequence[Any] = ()
    dense: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, model: nn.Module, data: Data, *, samples: int, length: int, seed: int | None, batch: int
    ) -> DivergenceGauge:
        """Read the dense model, which is this one as it is now.

        Raises:
            RequestError: without calibration text or losses, with too little text, or without weights to run.
        """
        if not data.losses and data.calibration is None:
            raise RequestError(
                "by=search needs calibration text",
                "give --calib FILE, write generate first, or use by=global, which needs scores only",
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise RequestError(
                "by=search runs the model, but its weights are not in memory", "use by=global, which needs scores only"
            )
        windows = () if data.losses else data.calibration.windows(length, samples, seed).split(batch)  # type: ignore[union-attr]
        divergence = cls(model, windows, data.losses)
        divergence.dense = list(divergence._readings())
        return divergence

    def read(self) -> float:
        """The present distance.

        Raises:
            FxpruneError: when it is not finite.
        """
        pairs = zip(self._readings(), self.dense, strict=True)
        if self.losses:
            value = float(torch.stack([now - then for now, then in pairs]).mean())
        else:
            total = sum(float(functional.kl_div(now, then, reduction="sum", log_target=True)) for now, then in pairs)
            value = total / sum(window.numel() for window in self.windows)
        if not np.isfinite(value):
            raise FxpruneError(f"the distance from the dense model is {value}", "run in float32; check the calibration")
        return value

    def _readings(self) -> Iterator[Tensor]:
        with inference(self.model):
            for loss in self.losses:
                yield loss(self.model).detach()
            for window in self.windows:
                yield functional.log_softmax(logits_of(self.model, window).float(), dim=-1)


class UnitMask:
    """Masks units of groups and restores them: the weights that read a masked unit are set to zero.

    This equals removal unless a normalisation runs over the units.

    Args:
        model: its weights are changed in place, inside :meth:`silencing` only.
        graph: graph of the model.
        groups: the groups that may be masked.

    Raises:
        RequestError: for a group that masking does not remove, because a normalisation runs over it or a router chooses
            among its units.
    """

    def __init__(self, model: nn.Module, graph: Graph, groups: Sequence[Group]) -> None:
        for group in groups:
            if group.normalised or group.kind in (Kind.CHANNELS, Kind.EXPERTS):
                raise RequestError(
                    f"by=search sets units to zero, which for {group.name} is not the same as removing them",
                    "use by=global, or channels=false, experts=false",
                )
        tensors = tensors_by_name(model)
        self._places = {g.name: [(m, tensors[m.tensor]) for m in taking_in(g, graph)] for g in groups}
        self._groups = {group.name: group for group in groups}
        self._cut: list[str] = []
        self._whole = {id(tensor): tensor.detach().clone() for places in self._places.values() for _, tensor in places}

    @contextmanager
    def silencing(self) -> Iterator[None]:
        """Inside, units can be masked; afterwards all weights are restored."""
        try:
            yield
        finally:
            self.keep({})

    @torch.no_grad()
    def keep(self, kept: Mapping[str, Indices]) -> None:
        """Mask all units of the named groups except the given ones; restore everything else."""
        for name in self._cut:
            for _, tensor in self._places[name]:
                tensor.copy_(self._whole[id(tensor)])
        self._cut = list(kept)
        for name, stay in kept.items():
            group = self._groups[name]
            alive = np.isin(np.arange(group.units), stay)
            for member, tensor in self._places[name]:
                units = group.unit_map(member.axis)
                gone = np.flatnonzero((units >= 0) & ~alive[units])
                tensor.index_fill_(member.dim, torch.from_numpy(gone).to(tensor.device), 0.0)


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
        probes = np.unique(np.linspace(0, len(curve.counts) - 1, PROBES).round().astype(int))
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
        for _ in range(moves if len(curves) > 1 else 0):
            moved = _moved(curves, costs, levels, limit, generator)
            if moved == levels:
                continue
            distance = self.distance(counts_of(curves, moved))
            if distance < best:
                best, levels = distance, moved
        return counts_of(curves, levels)


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
