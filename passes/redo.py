"""Finished passes done again: what they decided is carried out once more, without scores and without training."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.errors import FxpruneError
from .base import Pass, PassKind
from .manager import Analysis, forget, keep_before, run_analyses
from .state import Finished, State


def redo(pipeline: Sequence[Pass], finished: Sequence[Finished], state: State, *, analyses: Sequence[Analysis]) -> None:
    """Do again what the first passes of a pipeline did to the structure of a model; the values of weights are left.

    Args:
        pipeline: all passes.
        finished: of the first ones, what they did.
        state: as before the first pass.
        analyses: the analyses that passes may need.

    Raises:
        FxpruneError: the passes were others, or what they did does not fit the model.
    """
    names, done = [record.name for record in finished], pipeline[: len(finished)]
    if names != [step.name for step in done]:
        raise FxpruneError(f"the passes that ran are {', '.join(names)}")
    state.before.graph = state.before.graph or state.subject.graph
    for step, record in zip(done, finished, strict=True):
        list(run_analyses(step.needs, state, analyses))
        if step.kind == PassKind.SCORE:
            keep_before(state, pipeline[len(finished) :])
        for decision in record.decisions:
            decision.redo(state)
        forget(step.invalidates, state, analyses)
        state.ledger.finished.append(record)
