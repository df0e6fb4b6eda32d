"""The pass manager: order, lazy analyses, verification, the between-pass callback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.ir.options import option
from fxprune.passes.base import Pass, PassKind
from fxprune.passes.manager import Analysis, StepRecord, run_pipeline
from fxprune.passes.state import State

from ..states import state_of


@dataclass(frozen=True, kw_only=True)
class Look(Pass):
    """Reads the coupling."""

    name: ClassVar[str] = "look"
    kind: ClassVar[PassKind] = PassKind.SCORE
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    needs_weights: ClassVar[bool] = False

    def run(self, state: State) -> None:
        state.ledger.report.setdefault("ran", []).append(("look", state.subject.coupling))


@dataclass(frozen=True, kw_only=True)
class Cut(Look):
    """Makes the coupling stale, as a rewrite does."""

    name: ClassVar[str] = "cut"
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    by: int = option(1, "how much")

    def run(self, state: State) -> None:
        state.subject.graph = f"{state.subject.graph}-{self.by}"  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Read(Pass):
    """Reads weights."""

    name: ClassVar[str] = "read"
    kind: ClassVar[PassKind] = PassKind.SCORE


def a_state(device: str = "cpu") -> State:
    return state_of("graph", torch.nn.Linear(2, 2, device=device))  # type: ignore[arg-type]


ANALYSES = (Analysis("couple", "coupling", lambda graph: f"coupling of {graph}"),)


def run(pipeline: list[Pass], state: State, **options: Any) -> tuple[StepRecord, ...]:
    return run_pipeline(pipeline, state, **{"analyses": ANALYSES, "verify": lambda _: None, **options})


def test_analyses_run_once_when_needed_and_again_when_stale() -> None:
    state = a_state()
    steps = run([Look(), Look(), Cut(by=2), Look()], state)
    assert [step.text for step in steps] == ["couple", "look", "look", "cut{by=2}", "couple", "look"]
    assert [step.is_analysis for step in steps] == [True, False, False, False, True, False]
    assert [seen for _, seen in state.ledger.report["ran"]] == ["coupling of graph"] * 2 + ["coupling of graph-2"]
    assert all(step.seconds >= 0 for step in steps)


def test_the_callback_sees_every_step_and_the_graph_after_it() -> None:
    seen: list[tuple[str, object]] = []
    run([Look(), Cut()], a_state(), between=lambda step, state: seen.append((step.name, state.subject.graph)))
    assert seen == [("couple", "graph"), ("look", "graph"), ("cut", "graph-1")]


def test_progress_is_announced_before_each_pass() -> None:
    seen: list[tuple[str, int, int]] = []
    run([Look(), Cut(by=3)], a_state(), announce=lambda *what: seen.append(what))
    assert seen == [("look", 1, 2), ("cut{by=3}", 2, 2)]


def test_the_graph_is_verified_before_and_after_and_a_broken_pass_is_blamed() -> None:
    seen: list[object] = []
    shown: list[str] = []

    def verify(graph: object) -> None:
        seen.append(graph)
        if graph != "graph":
            raise FxpruneError("%y has no definition")

    with pytest.raises(FxpruneError) as caught:
        run([Look(), Cut()], a_state(), verify=verify, between=lambda step, _: shown.append(step.name))
    assert caught.value.message == "pass 'cut' left a malformed graph: %y has no definition"
    assert "--print-ir-after cut" in caught.value.hint
    assert seen == ["graph", "graph", "graph-1"]
    assert shown[-1] == "cut", "a broken graph must be shown before the verifier stops the run"


@pytest.mark.parametrize(
    ("pipeline", "where", "message", "hint"),
    [
        ([], "cpu", "the pipeline is empty", "fxprune passes"),
        ([Look(), Read()], "meta", "pass 'read' needs weights, but the model has none", "safetensors"),
    ],
)
def test_a_pipeline_that_cannot_run_is_refused_first(pipeline: list[Pass], where: str, message: str, hint: str) -> None:
    state = a_state(where)
    with pytest.raises(RequestError, match=message) as caught:
        run(pipeline, state)
    assert hint in caught.value.hint
    assert state.ledger.report == {}
