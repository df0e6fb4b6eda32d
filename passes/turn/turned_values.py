"""Turns the values of attention heads: what their directions are worth, and weights in the new basis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import FxpruneError
from ...runtime.streaming.turns import Feed
from ...runtime.tolerances import relative_difference, same_function
from ..calibrate.batches import LinearCall, calibration_feeds
from ..changes import put_values
from ..model.answers import answer_of
from ..score.consumer_scores import ConsumerMember, readers_of, visit
from ..state import State
from .turn import TurnValues
from .values import HeadValues, head_values
from .values_held import ValuesHeld

NOTHING_TURNS = (
    "no attention has values that can be turned: they want a linear layer of their own, and one that reads what "
    "attention gives; heads stay whole or go"
)

SMALLEST_MOMENT = 1e-4
"""Added to the second moments of a head, relative to their mean: text may not use all directions."""


def turn_values(step: TurnValues, state: State) -> None:
    """Run the pass on a state, in place."""
    coupling, subject = state.subject.coupling, state.subject
    assert coupling is not None, "the manager runs couple first"
    found = head_values(coupling, subject.model)
    if not found:
        state.ledger.report[step.name] = {"attentions": 0, "remarks": [NOTHING_TURNS]}
        return
    feeds = calibration_feeds(
        state.data, "turn needs", samples=step.samples, length=step.length, seed=step.seed, batch=step.batch,
        ranks=state.ranks,
    )  # fmt: skip
    before = _answers(state, feeds[:1])
    moments = _second_moments(found, feeds, state)
    for values in found:
        put_values(subject.runner, _turned(values, moments[values.group.name], state))
    _check_same(state, feeds[:1], before)
    held = ValuesHeld({path: (does, one.group.size) for one in found for path, does in one.modules.items()})
    held.redo(state)
    state.ledger.decisions.append(held)
    state.ledger.report[step.name] = {"attentions": len(found)}


def _second_moments(found: Sequence[HeadValues], feeds: Sequence[Feed], state: State) -> dict[str, Tensor]:
    """Group name -> the sum over calls of ``z z^T`` for what each head's reader is given: float64
    ``[heads, width, width]``."""
    by_group = {values.group.name: values for values in found}
    sums: dict[str, Tensor] = {}

    def receive(reader: ConsumerMember, call: LinearCall) -> None:
        values = by_group[reader.group.name]
        heads = torch.stack([_moments(call.x, rows) for rows in values.rows(reader.member)])
        sums[values.group.name] = sums[values.group.name] + heads if values.group.name in sums else heads

    groups = [values.group for values in found]
    visit(state.subject.runner, feeds, readers_of(groups, state.subject.graph), receive)
    whole = state.ranks.sum_all(sums)
    for group in groups:
        if group.name not in whole or not torch.isfinite(whole[group.name]).all():
            raise FxpruneError(
                f"turn: what attention gives in {group.name} is not finite, or was never computed",
                "run in float32; check the calibration text",
            )
    return whole


def _moments(x: Tensor, rows: Any) -> Tensor:
    """``z z^T``, summed over the rows of ``x [T, k]`` and over ``rows [times, width]``, the columns of one head."""
    z = x.detach()[:, torch.from_numpy(rows.ravel()).to(x.device)].double().reshape(-1, rows.shape[1])
    return z.T @ z


def _turned(values: HeadValues, moments: Tensor, state: State) -> dict[str, Tensor]:
    """The weights and biases of one attention in the new basis, by name."""
    runner = state.subject.runner
    tensors = {name: runner.value(name).clone() for name in sorted(values.group.tensors)}
    read = [(tensors[one.tensor], values.rows(one)) for one in values.readers]
    for head, known in enumerate(moments):
        metric = torch.zeros_like(known)
        for weight, rows in read:
            for columns in rows[head]:
                part = weight[:, columns].to(known)
                metric += part.T @ part
        turn = basis(known, metric)
        for member in (*values.makers, *values.readers):
            weight = tensors[member.tensor]
            for places in values.rows(member)[head]:
                part = weight[places] if member.dim == 0 else weight[:, places].T
                new = (turn @ part.to(turn)).to(weight.dtype)
                if member.dim == 0:
                    weight[places] = new
                else:
                    weight[:, places] = new.T
    return tensors


def basis(moments: Tensor, metric: Tensor) -> Tensor:
    """The turn of a head's values whose first ``r`` directions keep the most of its outputs, for every ``r``.

    Of values ``z`` with second moments ``C`` that weights read with ``M = W^T W``, the best ``r`` linear functions are
    the first right singular vectors of ``M^(1/2) C^(1/2)`` times ``C^(-1/2)``. Made orthogonal from the first on, they
    span the same spaces, and weights keep their sizes.

    Args:
        moments: ``C``, float64 ``[width, width]``.
        metric: ``M``, likewise.

    Returns:
        Orthogonal, float64 ``[width, width]``; the identity for a head that gives nothing.
    """
    width = len(moments)
    mean = moments.diagonal().mean()
    if not mean > 0:
        return torch.eye(width, dtype=moments.dtype, device=moments.device)
    values, vectors = torch.linalg.eigh(moments / mean)
    roots = values.clamp_min(0).add(SMALLEST_MOMENT).sqrt()
    sizes, directions = torch.linalg.eigh(metric)
    half = directions * sizes.clamp_min(0).sqrt() @ directions.T
    _, _, right = torch.linalg.svd(half @ (vectors * roots @ vectors.T))
    functions = right @ (vectors / roots @ vectors.T)
    turn: Tensor = torch.linalg.qr(functions.T)[0].T
    return turn


def _answers(state: State, feeds: Sequence[Feed]) -> list[Tensor]:
    """What the model says of some batches."""
    outputs = state.subject.runner.run(feeds)
    return [part.cpu().rows for output in outputs for part in answer_of(output, {}, state.subject.outputs)]


def _check_same(state: State, feeds: Sequence[Feed], before: Sequence[Tensor]) -> None:
    """Check that the model computes what it computed.

    Raises:
        FxpruneError: with the largest difference.
    """
    after = _answers(state, feeds)
    worst = max((relative_difference(now, then) for now, then in zip(after, before, strict=True)), default=0.0)
    if worst > same_function(state.subject.runner.dtype):
        raise FxpruneError(
            f"turn: the turned model computes something else: its outputs differ by {worst:.2g}",
            "please report the architecture; until then, leave turn out",
        )
