"""Finished passes done again without scores, and what is noted of a pass for that."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.ir.errors import FxpruneError
from fxprune.ir.verifier import verify
from fxprune.passes.changes import changed_values, kept_digest, put_values, structure_digest
from fxprune.passes.drop.taken_out import LayersKept, PartsAbsent
from fxprune.passes.manager import run_pipeline
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.redo import redo
from fxprune.passes.registry import PASSES
from fxprune.passes.score.taylor import Taylor
from fxprune.passes.shrink.cut import Cut
from fxprune.passes.state import Finished, State
from fxprune.passes.structure import ANALYSES, DECISIONS
from fxprune.passes.turn.values_held import ValuesHeld
from fxprune.runtime.streaming.block_runner import BlockRunner

from ..states import decoder_state
from .select.test_allocate import make

SHORT = "samples=2,length=8"


class Broken(Exception):
    """Breaks a pipeline off."""


def resumable(text: str, model: nn.Module, at: int = 0) -> State:
    """A state after a pipeline, or when its pass number ``at`` begins, with what is needed to do without the passes."""
    state, pipeline = decoder_state(model), parse_pipeline(text, PASSES)
    state.subject.coupling = None

    def announce(_text: str, number: int, _count: int) -> None:
        if number == at:
            raise Broken

    with suppress(Broken):
        run_pipeline(pipeline, state, analyses=ANALYSES, verify=verify, announce=announce, resumable=True)
    return state


def redone(text: str, model: nn.Module, finished: list[Finished]) -> State:
    state = decoder_state(model)
    state.subject.coupling = None
    pipeline = parse_pipeline(text, PASSES)
    done, rest = pipeline[: len(finished)], pipeline[len(finished) :]
    redo(done, finished, state, rest=rest, analyses=ANALYSES)
    return state


@pytest.mark.parametrize(
    "text",
    [
        f"taylor{{{SHORT}}},random",
        f"drop{{layers=1,sub_blocks=1,{SHORT}}},magnitude",
        f"magnitude,drop{{layers=1,{SHORT}}}",
        "magnitude{ratio=0.0}",
    ],
)
def test_decisions_give_the_same_structure(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    state = resumable(text, copy.deepcopy(model))
    monkeypatch.setattr(Taylor, "scores", lambda *_: pytest.fail("scored again"))
    again = redone(text, model, state.ledger.finished)
    assert structure_digest(again) == structure_digest(state)
    assert again.ledger.finished == state.ledger.finished
    assert not state.ledger.changed
    assert kept_digest(again.subject.model, frozenset()) == kept_digest(state.subject.model, frozenset())


def test_turned_values_are_held_again() -> None:
    text = f"turn{{{SHORT}}},magnitude{{values=true,ratio=0.5}},compensate{{{SHORT}}}"
    model = make("llama")
    state = resumable(text, copy.deepcopy(model))
    again = redone(text, model, state.ledger.finished)
    assert structure_digest(again) == structure_digest(state)
    assert any(".v_proj" in name for name in state.ledger.changed)
    put_values(again.subject.runner, changed_values(state.subject.runner, state.ledger.changed))
    assert kept_digest(again.subject.model, frozenset()) == kept_digest(state.subject.model, frozenset())


def test_the_tensors_are_noted_that_a_pass_changes() -> None:
    text = f"magnitude{{ratio=0.5,heads=off}},compensate{{{SHORT}}},random{{ratio=0.5}}"
    state = resumable(text, make("llama"))
    layers = len(state.subject.model.model.layers)
    assert state.ledger.changed == {f"model.layers.{n}.mlp.down_proj.weight" for n in range(layers)}


def test_names_of_changed_tensors_follow_the_layers_that_stay() -> None:
    text = f"magnitude{{ratio=0.5,heads=off,layers=1:2}},compensate{{{SHORT}}},drop{{layers=1,{SHORT}}}"
    state = resumable(text, make("llama"))
    (kept,) = [made.kept for made in state.ledger.decisions if isinstance(made, LayersKept)]
    expected = {f"model.layers.{kept.index(1)}.mlp.down_proj.weight"} if 1 in kept else set()
    assert state.ledger.changed == expected


def test_copies_of_the_model_are_made_when_they_were() -> None:
    text = f"magnitude,compensate{{{SHORT}}},drop{{layers=1,{SHORT}}},random,compensate{{{SHORT}}},lora{{teacher=1.0}}"
    model = make("llama")
    state = resumable(text, copy.deepcopy(model), at=5)
    again = redone(text, model, state.ledger.finished)
    names: tuple[Literal["model", "same_layers"], ...] = ("model", "same_layers")
    for name in names:
        mine, theirs = again.before.runner(name), state.before.runner(name)
        assert mine is not None
        assert theirs is not None
        put_values(mine, changed_values(theirs, state.before.changed[name]))
        assert kept_digest(mine.model, frozenset()) == kept_digest(theirs.model, frozenset())
    assert state.before.changed["model"] == frozenset()
    assert state.before.changed["same_layers"] == state.ledger.changed != frozenset()


@pytest.mark.parametrize(
    ("finished", "message"),
    [
        ([Finished("random")], "the passes that ran are random"),
        ([Finished("magnitude", (Cut({"of nothing": np.array([0])}),))], "names a group 'of nothing'"),
        ([Finished("magnitude", (LayersKept((0,), 7),))], "layers, not 7"),
        ([Finished("magnitude", (PartsAbsent({"nowhere": {"outputs": 0, "cache": None}}),))], "no part nowhere"),
    ],
)
def test_decisions_that_do_not_fit(finished: list[Finished], message: str) -> None:
    with pytest.raises(FxpruneError, match=message):
        redone("magnitude", make("llama"), finished)


def test_units_are_not_cut_by_an_analysis_of_another_graph() -> None:
    state = decoder_state(make("llama"))
    keep = {next(g.name for g in state.subject.coupling.prunable): np.array([0, 1])}  # type: ignore[union-attr]
    state.subject.coupling = None
    with pytest.raises(FxpruneError, match="no analysis of the graph names"):
        Cut(keep).redo(state)


MALFORMED = [
    (Cut, {"keep": {"g": [1, 2]}}),
    (Cut, {"keep": {"g": np.array([1.0])}}),
    (Cut, {}),
    (LayersKept, {"kept": [], "count": 2}),
    (LayersKept, {"kept": [1, 0], "count": 2}),
    (LayersKept, {"kept": [0, 2], "count": 2}),
    (LayersKept, {"kept": [-1], "count": 2}),
    (LayersKept, {"kept": ["0"], "count": 2}),
    (PartsAbsent, {"absences": {"a": {"outputs": "0", "cache": None}}}),
    (PartsAbsent, {"absences": {"a": {"outputs": 0, "cache": 1.5}}}),
    (PartsAbsent, {"absences": {"a": {"outputs": 0}}}),
    (PartsAbsent, {"absences": {"a": {"outputs": 0, "cache": None, "more": 1}}}),
    (ValuesHeld, {"values": {"a": ["takes", 8]}}),
    (ValuesHeld, {"values": {"a": ["makes", 0]}}),
    (ValuesHeld, {"values": {"a": ["makes"]}}),
    (ValuesHeld, {}),
]


@pytest.mark.parametrize(("kind", "data"), MALFORMED)
def test_malformed_decisions_are_not_read(kind: Any, data: Any) -> None:
    with pytest.raises((ValueError, KeyError)):
        kind.from_json(data)


def test_decisions_have_names_of_their_own() -> None:
    assert len({kind.name for kind in DECISIONS}) == len(DECISIONS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nowhere": torch.zeros(1)}, "no tensor 'nowhere'"),
        ({"weight": torch.zeros(2, 2)}, r"'weight' is torch.float32 \[2, 2\], not torch.float32 \[2, 3\]"),
        ({"bias": torch.zeros(2).half()}, r"'bias' is torch.float16 \[2\], not torch.float32 \[2\]"),
    ],
)
def test_values_that_do_not_fit_change_nothing(values: dict[str, torch.Tensor], message: str) -> None:
    model = nn.Linear(3, 2)
    before = kept_digest(model, frozenset())
    with pytest.raises(FxpruneError, match=message):
        put_values(BlockRunner(model), {"bias": torch.ones(2), **values})
    assert kept_digest(model, frozenset()) == before
