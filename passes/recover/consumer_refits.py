"""What compensate does: one linear map after the other, refitted or shifted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from torch import Tensor

from ...ir import FxpruneError, RequestError
from ...runtime.ranks import Ranks
from ...runtime.reporting import counted
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
from .compensate import Compensate


def refit_consumers(step: Compensate, state: State) -> None:
    """Refit in place, as :meth:`~.compensate.Compensate.run` says."""
    if state.before.same_layers is None or state.ledger.plan is None:
        raise RequestError(
            "compensate: no pruning pass before it removed units", "write it after one: taylor,compensate"
        )
    batches = calibration_feeds(
        state.data,
        "compensate needs",
        samples=step.samples,
        length=step.length,
        seed=step.seed,
        batch=step.batch,
        ranks=state.ranks,
    )
    pairs = DenseAndPruned.of(state, batches)
    notes: list[str] = []
    if step.method == "bias":
        _require_biases(pairs)
    elif not state.data.losses and not is_inputs(state.data.calibration):  # how many tokens that is shows later
        for consumer in pairs.consumers:
            _require(step, pairs.probed(consumer), step.samples * step.length, notes=None)
    fits = step.method == "lstsq"
    sets = list(pairs.in_order())
    with closing(pairs.visits(sets, residual=fits and step.residual)) as visits:
        for visit in counted(visits, "refits", len(sets)):
            if fits:
                _refit(step, pairs, sets[visit.number], visit, notes=notes, ranks=state.ranks)
            else:
                _shift(visit, state.ranks)
    state.ledger.report[step.name] = {
        "method": step.method, "refitted": [c.tensor for c in pairs.consumers], "left": pairs.left, "notes": notes,
    }  # fmt: skip


def _require(step: Compensate, at: LinearMap, tokens: int, notes: list[str] | None) -> None:
    """Note that a linear map has more unknowns than tokens; without damping, raise RequestError."""
    short = at.unknowns - tokens
    if short <= 0:
        return
    what = f"{at}: {tokens} calibration inputs for {at.unknowns} unknowns of an output, {short} too few"
    if step.damping == 0:
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
    step: Compensate,
    pairs: DenseAndPruned,
    consumers: Sequence[Consumer],
    visit: Visit,
    *,
    notes: list[str],
    ranks: Ranks,
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
        _require(step, at, moments.count, notes)
        if owner != ranks.index:
            continue
        try:
            at.put(refit(moments, at.whole(), step.damping))
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
