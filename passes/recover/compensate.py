"""compensate: refit the weights that read removed units, so that their outputs stay close to the dense model's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...ir import FxpruneError, RequestError
from ...ir.options import option, seed_option
from ...runtime.ranks import Ranks
from ..base import Pass, PassKind
from ..calibrate.batches import calibration_feeds
from ..calibrate.dense_and_pruned import DenseAndPruned
from ..calibrate.least_squares import refit
from ..calibrate.linear_maps import LinearMap
from ..calibrate.map_moments import moments_of
from ..calibrate.observed_calls import Visit
from ..calibrate.shared_moments import shared_moments
from ..couple.consumers import Consumer
from ..data import is_inputs
from ..state import State

METHODS = ("lstsq", "bias")


@dataclass(frozen=True, kw_only=True)
class Compensate(Pass):
    """Refit every linear map whose inputs lost units, one after the other in execution order.

    When a linear map is refitted, all layers before it are already pruned and refitted. The target is the dense model's
    output; with ``residual``, it is the output that makes the pruned residual stream equal to the dense one (sequential
    least squares as in OSSCAR, SlimGPT and Tyr-the-Pruner, arXiv 2503.09657). ``method=bias`` only adds the mean
    contribution of the removed inputs to the bias (FLAP, arXiv 2312.11983).
    """

    name: ClassVar[str] = "compensate"
    kind: ClassVar[PassKind] = PassKind.RECOVER

    method: str = option("lstsq", "lstsq: refit the kept weights; bias: correct the mean", METHODS)
    damping: float = option(
        0.01, "strength of the pull to the present weights, relative to the mean second moment", at_least=0,
        hint="use 0.01, or 0 for none",
    )  # fmt: skip
    samples: int = option(64, "calibration windows", at_least=1)
    length: int = option(128, "tokens in a calibration window", at_least=1)
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")
    batch: int = option(8, "windows in one forward pass", at_least=1)
    residual: bool = option(
        True, "fit to the dense model's residual stream, so that errors of earlier layers are corrected too"
    )

    @property
    def looks_back_at(self) -> tuple[Literal["same_layers"]]:
        """It fits to what the same layers gave."""
        return ("same_layers",)

    def run(self, state: State) -> None:
        """Refit in place.

        Raises:
            RequestError: without a pruning pass before it; without calibration data, or with too little for a fit
                without damping; for ``method=bias`` where a consumer has no bias.
            FxpruneError: for statistics that are not finite, or singular without damping.
        """
        if state.before.same_layers is None or state.ledger.plan is None:
            raise RequestError(
                "compensate: no pruning pass before it removed units", "write it after one: taylor,compensate"
            )
        batches = calibration_feeds(
            state.data,
            "compensate needs",
            samples=self.samples,
            length=self.length,
            seed=self.seed,
            batch=self.batch,
            ranks=state.ranks,
        )
        pairs = DenseAndPruned.of(state, batches)
        notes: list[str] = []
        if self.method == "bias":
            _require_biases(pairs)
        elif not state.data.losses and not is_inputs(state.data.calibration):  # how many tokens that is shows later
            for consumer in pairs.consumers:
                self._require(pairs.probed(consumer), self.samples * self.length, notes=None)
        fits = self.method == "lstsq"
        sets = list(pairs.in_order())
        with closing(pairs.visits(sets, residual=fits and self.residual)) as visits:
            for visit in visits:
                if fits:
                    self._refit(pairs, sets[visit.number], visit, notes, state.ranks)
                else:
                    _shift(visit, state.ranks)
        state.ledger.report[self.name] = {
            "method": self.method, "refitted": [c.tensor for c in pairs.consumers], "left": pairs.left, "notes": notes,
        }  # fmt: skip

    def _require(self, at: LinearMap, tokens: int, notes: list[str] | None) -> None:
        """Note that a linear map has more unknowns than tokens; without damping, raise RequestError."""
        short = at.unknowns - tokens
        if short <= 0:
            return
        what = f"{at}: {tokens} calibration tokens for {at.unknowns} unknowns of an output, {short} too few"
        if self.damping == 0:
            raise RequestError(
                f"compensate: {what}",
                "give more calibration text, or damping above 0, which keeps undetermined weights at their values",
            )
        if notes is not None:
            notes.append(
                f"{what}; damping holds the rest at its value; more calibration data would settle it "
                "(generate writes some for a language model)"
            )

    def _refit(
        self, pairs: DenseAndPruned, consumers: Sequence[Consumer], visit: Visit, notes: list[str], ranks: Ranks
    ) -> None:
        shared = shared_moments(moments_of(visit.calls), visit, ranks)
        reached = {(at.tensor, at.expert) for at, (_, moments) in shared.items() if moments.count}
        for consumer in consumers:
            missed = [n for n in range(pairs.experts(consumer)) if (consumer.tensor, n) not in reached]
            if missed:
                notes.append(f"{consumer.tensor}: no token reached experts {missed}; they stay as they are")
        owners = {at: owner for at, (owner, _) in shared.items()}
        for at in owners:
            owner, moments = shared.pop(at)
            if not moments.count:
                continue
            self._require(at, moments.count, notes)
            if owner != ranks.index:
                continue
            try:
                at.put(refit(moments, at.whole(), self.damping))
            except FxpruneError as error:
                raise FxpruneError(f"{at}: {error.message}", error.hint) from error
        if ranks.count > 1:
            for at, owner in owners.items():
                at.put(ranks.broadcast(at.whole().clone(), owner))


def _shift(visit: Visit, ranks: Ranks) -> None:
    """Correct the mean outputs of linear maps by their biases."""
    sums: dict[LinearMap, tuple[Tensor, int]] = {}
    for at, _, wanted, got in visit.calls:
        total, count = sums.get(at, (0.0, 0))
        sums[at] = total + (wanted.double() - got.double()).sum(0), count + len(got)
    for at, (part, own) in sums.items():
        total, count = ranks.sum(part), sum(ranks.gather(own))
        shift = total / count
        if not bool(shift.isfinite().all()):
            raise FxpruneError(f"{at}: the mean outputs are not finite", "run in float32; check the --calib text")
        at.shift(shift)


def _require_biases(pairs: DenseAndPruned) -> None:
    without = [consumer.owner for consumer in pairs.consumers if pairs.probed(consumer).beside is None]
    if without:
        raise RequestError(f"compensate: {without[0]} has no bias to correct", "use method=lstsq, which needs no bias")
