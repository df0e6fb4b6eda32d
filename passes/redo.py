"""Finished passes done again: what they decided is carried out once more, without scores and without training."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.errors import FxpruneError
from .base import Pass, PassKind
from .manager import Analysis, forget, keep_before, run_analyses
from .state import Finished, State


def redo(
    done: Sequence[Pass],
    finished: Sequence[Finished],
    state: State,
    *,
    rest: Sequence[Pass],
    analyses: Sequence[Analysis],
) -> None:
    """Do again what the first passes of a pipeline did to the structure of a model; the values of weights are left.

    Args:
        done: the passes that have run.
        finished: what each of them did.
        state: as before the first pass.
        rest: the passes that will run. Copies of the model are made only for these.
        analyses: the analyses that passes may need.

    Raises:
        FxpruneError: the passes were others, or what they did does not fit the model.
    """
    names = [record.name for record in finished]
    if names != [step.name for step in done]:
        raise FxpruneError(f"the passes that ran are {', '.join(names) or 'none'}")
    state.before.graph = state.before.graph or state.subject.graph
    for step, record in zip(done, finished, strict=True):
        list(run_analyses(step.needs, state, analyses))
        if step.kind == PassKind.SCORE:
            keep_before(state, rest)
        for decision in record.decisions:
            decision.redo(state)
        forget(step.invalidates, state, analyses)
        state.ledger.finished.append(record)
