"""Runs a pipeline: analyses when a pass needs them, the verifier after every pass, a callback between passes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ir.errors import FxpruneError, RequestError
from ..ir.plugins import named_faults
from .base import Pass, PassKind
from .changes import noted
from .pipeline import print_pass
from .state import State

if TYPE_CHECKING:
    from ..ir.graph import Graph


@dataclass(frozen=True)
class Analysis:
    """Something derived from the graph that passes need and that a rewrite makes stale.

    Attributes:
        name: what ``Pass.needs`` and ``Pass.invalidates`` call it.
        part: the attribute of :class:`~.state.Subject` that holds its result, None while there is none.
        run: computes the result from the graph.
    """

    name: str
    part: str
    run: Callable[[Graph], object]


@dataclass(frozen=True)
class StepRecord:
    """One thing that ran: a pass of the pipeline, or an analysis that a pass needed.

    Attributes:
        name: name of the pass or analysis.
        text: pipeline text with options; an analysis has no options.
        seconds: wall time, without the verifier.
        is_analysis: whether it is an analysis, which the manager inserted.
    """

    name: str
    text: str
    seconds: float
    is_analysis: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON data, the arguments that make an equal one."""
        return dataclasses.asdict(self)


Verify = Callable[["Graph"], None]
Between = Callable[[StepRecord, State], None]
Announce = Callable[[str, int, int], None]


def check_inputs(pipeline: Sequence[Pass], state: State) -> None:
    """Check that the state has what the pipeline needs.

    Raises:
        RequestError: for an empty pipeline, or a pass that reads weights when only a config was given.
    """
    if not pipeline:
        raise RequestError("the pipeline is empty", "name at least one pass; see `fxprune passes`")
    bare = any(parameter.is_meta for parameter in state.subject.model.parameters())
    if bare and state.subject.residence is None:
        for step in pipeline:
            if step.needs_weights and not (step.streams and state.host.weights is not None):
                raise RequestError(
                    f"pass {step.name!r} needs weights, but the model has none",
                    "give a model with a *.safetensors file, or use a pass without weights, such as random",
                )


def run_pipeline(
    pipeline: Sequence[Pass],
    state: State,
    *,
    analyses: Sequence[Analysis],
    verify: Verify,
    between: Between | None = None,
    announce: Announce | None = None,
    resumable: bool = False,
) -> tuple[StepRecord, ...]:
    """Run ``pipeline`` on ``state``, in place.

    Args:
        pipeline: the passes, from :func:`~fxprune.passes.pipeline.parse_pipeline`, which has checked their options.
        state: what the passes read and change.
        analyses: the analyses that passes may need.
        verify: raises for a malformed graph; called on the graph before the first pass and after every pass.
        between: called after every step, before the verifier.
        announce: called before every pass with its text, its number from 1, and the number of passes.
        resumable: whether the ledger shall say what :func:`~.redo.redo` needs.

    Returns:
        The steps that ran, in order, with times.

    Raises:
        RequestError, FxpruneError: the state lacks something; a pass, which is named, failed or left a malformed graph.
    """
    check_inputs(pipeline, state)
    verify(state.subject.graph)
    state.before.graph = state.before.graph or state.subject.graph
    steps: list[StepRecord] = []

    def record(step: StepRecord) -> None:
        steps.append(step)
        if between is not None:
            between(step, state)

    for number, step in enumerate(pipeline, start=1):
        if announce is not None:
            announce(print_pass(step), number, len(pipeline))
        for analysis in run_analyses(step.needs, state, analyses):
            record(analysis)
        if step.kind == PassKind.SCORE:
            keep_before(state, pipeline[number:])
        with noted(step, state) if resumable else nullcontext():
            seconds = _run(step, state)
        forget(step.invalidates, state, analyses)
        record(StepRecord(step.name, print_pass(step), seconds))
        _verify_after(step, state, verify)
    return tuple(steps)


def keep_before(state: State, rest: Sequence[Pass]) -> None:
    """Copy the model once before it is pruned, if later passes compare with it or learn from it."""
    before, runner, changed = state.before, state.subject.runner, state.ledger.changed
    fresh = before.model is None and any("model" in step.looks_back_at for step in rest)
    layers = before.same_layers is None and any("same_layers" in step.looks_back_at for step in rest)
    if not fresh and not layers:
        return
    dense = runner.twin()
    if fresh:
        before.keep("model", dense, changed)
    if layers:
        before.keep("same_layers", dense, changed)


def run_analyses(names: Iterable[str], state: State, analyses: Sequence[Analysis]) -> Iterator[StepRecord]:
    """Run those of the named analyses that are not valid, one at a time."""
    known = {analysis.name: analysis for analysis in analyses}
    for name in names:
        analysis = known[name]
        if getattr(state.subject, analysis.part) is None:
            started = time.perf_counter()
            setattr(state.subject, analysis.part, analysis.run(state.subject.graph))
            yield StepRecord(name, name, time.perf_counter() - started, is_analysis=True)


def forget(names: Iterable[str], state: State, analyses: Sequence[Analysis]) -> None:
    """Remove the results of the named analyses."""
    known = {analysis.name: analysis for analysis in analyses}
    for name in names:
        setattr(state.subject, known[name].part, None)


def _run(step: Pass, state: State) -> float:
    """Run a pass; returns the seconds that it took."""
    started = time.perf_counter()
    with named_faults(type(step), f"pass {step.name!r}"):
        step.run(state)
    return time.perf_counter() - started


def _verify_after(step: Pass, state: State, verify: Verify) -> None:
    """Verify the graph after a pass; an error names the pass as the cause."""
    try:
        verify(state.subject.graph)
    except FxpruneError as error:
        raise FxpruneError(
            f"pass {step.name!r} left a malformed graph: {error.message}",
            "this is a bug in the pass; please report it with the command and --print-ir-after " + step.name,
        ) from error
