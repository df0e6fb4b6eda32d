"""Scores that are kept: a second budget runs no calibration text and plans what an unsaved run plans."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaForCausalLM

import fxprune
from fxprune.api.pruning.score_file import SCORES_ENTRY, open_scores
from fxprune.ir.errors import RequestError
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.score_cache import CURVE, ScoreCache
from fxprune.passes.state import State
from fxprune.tracer.export import Traced, trace_causal_lm

from ..corpora import RunningTokens
from ..decoders import VOCABULARY, llama
from ..states import decoder_state, run_passes

LENGTH = 19
"""Of a calibration window, so that a forward pass on calibration text can be told from all others."""

SAMPLES = f"samples=6,length={LENGTH}"


def drawn(seed: int = 0) -> RunningTokens:
    return RunningTokens(VOCABULARY, 40 * LENGTH, seed)


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of windows whenever a model reads calibration text."""
    counted: list[int] = []
    forward = LlamaForCausalLM.forward

    def counting(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids is not None and input_ids.shape[1] == LENGTH:
            counted.append(len(input_ids))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counting)
    return counted


@functools.cache
def traced() -> Traced:
    return trace_causal_lm(llama())


def run(text: str, saved: ScoreCache | None = None, model: Any = None, corpus: Any = None) -> State:
    return run_passes(decoder_state(model or llama(), traced(), calibration=corpus or drawn(), scores=saved), text)


def kept(text: str) -> ScoreCache:
    """As another run reads them back."""
    saved = ScoreCache("scores.safetensors")
    run(text, saved)
    return ScoreCache(saved.name, saved.arrays, json.loads(json.dumps(saved.record)), loaded=True)


def again(saved: ScoreCache) -> ScoreCache:
    return ScoreCache(saved.name, saved.arrays, saved.record, loaded=True)


@pytest.mark.parametrize(
    ("first", "budgets"),
    [
        ("taylor", ["ratio=0.25", "ratio=0.5", "target=params:0.8", "target=macs:0.7,by=global"]),
        ("obs{by=global", ["target=params:0.8,by=global", "by=global,ratio=0.5"]),
        ("fisher", ["ratio=0.5", "by=global,ratio=0.25"]),
        ("wanda", ["ratio=0.5", "target=params:0.8"]),
    ],
)
def test_other_budgets_read_no_calibration_text_and_plan_the_same(
    first: str, budgets: list[str], calibrations: list[int]
) -> None:
    opened = first if "{" in first else first + "{" + SAMPLES
    saved = kept(opened + ("," + SAMPLES if "{" in first else "") + "}")
    name = first.partition("{")[0]
    assert calibrations
    for budget in budgets:
        calibrations.clear()
        reused = run(f"{name}{{{SAMPLES},{budget}}}", again(saved))
        assert calibrations == []
        fresh = run(f"{name}{{{SAMPLES},{budget}}}")
        assert calibrations
        assert reused.ledger.plan is not None
        assert fresh.ledger.plan is not None
        assert reused.ledger.plan.keep.keys() == fresh.ledger.plan.keep.keys()
        keep, tensors = fresh.ledger.plan.keep, fresh.subject.model.state_dict()
        assert all(np.array_equal(units, keep[group]) for group, units in reused.ledger.plan.keep.items())
        assert all(torch.equal(tensor, tensors[name_]) for name_, tensor in reused.subject.model.state_dict().items())


def test_a_search_keeps_what_it_measured_of_single_groups(calibrations: list[int]) -> None:
    search = f"fisher{{{SAMPLES},by=search,moves=5,ratio="
    saved = kept(f"{search}0.25}}")
    assert calibrations
    calibrations.clear()
    reused = run(f"{search}0.5}}", again(saved))
    # The dense model, the two ways to begin, the one that was chosen, at most five moves, the end: six windows each.
    assert sum(calibrations) <= 6 * (1 + 2 + 1 + 5 + 1)
    fresh = run(f"{search}0.5}}")
    assert reused.ledger.plan is not None
    assert fresh.ledger.plan is not None
    assert reused.ledger.plan.keep.keys() == fresh.ledger.plan.keep.keys() != set()
    assert all(np.array_equal(units, fresh.ledger.plan.keep[group]) for group, units in reused.ledger.plan.keep.items())


def test_scores_without_a_search_are_kept_with_one_once_it_has_run(calibrations: list[int]) -> None:
    saved = kept(f"fisher{{{SAMPLES},by=global}}")
    assert not any(name.startswith(CURVE) for name in saved.arrays)
    search = f"fisher{{{SAMPLES},by=search,moves=0"
    first = again(saved)
    run(search + "}", first)
    assert first.changed
    second, third = again(first), again(first)
    calibrations.clear()
    run(search + "}", second)
    few = sum(calibrations)
    assert not second.changed
    calibrations.clear()
    run(search + ",multiple_of=4}", third)  # other counts
    assert third.changed
    assert sum(calibrations) > few


def test_depth_first_is_the_same_model_for_every_width_and_later_passes_score_anew(calibrations: list[int]) -> None:
    drop = f"drop{{layers=1,{SAMPLES}}}"
    saved = kept(f"{drop},fisher{{{SAMPLES}}}")
    calibrations.clear()
    run(drop)
    dropping = list(calibrations)
    calibrations.clear()
    run(f"{drop},fisher{{{SAMPLES},ratio=0.5}}", again(saved))
    assert calibrations == dropping
    twice = f"taylor{{{SAMPLES},ratio=0.25}},taylor{{{SAMPLES},ratio=0.25}}"
    saved = kept(twice)
    calibrations.clear()
    state = run(twice, again(saved))
    assert sum(calibrations) == 6  # of the second one
    plan = run(twice).ledger.plan
    assert state.ledger.plan is not None
    assert plan is not None
    assert state.ledger.plan.keep.keys() == plan.keep.keys() != set()
    assert all(np.array_equal(units, plan.keep[group]) for group, units in state.ledger.plan.keep.items())


TAYLOR = f"taylor{{{SAMPLES}}}"
OBS = f"obs{{{SAMPLES},ratio=0.5}}"
OTHER = "give another FILE to --scores"


@pytest.mark.parametrize(
    ("first", "second", "given", "message", "hint"),
    [
        (TAYLOR, f"fisher{{{SAMPLES}}}", {}, "scores of 'taylor', but this run uses 'fisher'", OTHER),
        (TAYLOR, "taylor{samples=5,length=19}", {}, "with other options: samples=6, now 5", OTHER),
        (TAYLOR, f"taylor{{{SAMPLES},heads=off}}", {}, "with other options: heads=auto, now off", OTHER),
        (
            OBS,
            f"obs{{{SAMPLES},ratio=0.25}}",
            {},
            "with other options: ratio=0.5, now 0.25",
            "valid for one ratio only",
        ),
        (OBS, f"obs{{{SAMPLES},by=global}}", {}, "with other options: the budget is of another kind", "one ratio only"),
        (TAYLOR, TAYLOR, {"model": "other"}, "scores of another model or other weights", OTHER),
        (TAYLOR, TAYLOR, {"corpus": drawn(1)}, "computed on another text, not on 'drawn'", OTHER),
    ],
)
def test_scores_that_do_not_fit_are_refused(  # noqa: PLR0917
    first: str, second: str, given: dict[str, Any], message: str, hint: str, calibrations: list[int]
) -> None:
    saved = kept(first)
    if "model" in given:
        given = {"model": llama()}
        with torch.no_grad():
            given["model"].model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    calibrations.clear()
    with pytest.raises(RequestError) as caught:
        run(second, again(saved), **given)
    assert message in caught.value.message
    assert caught.value.message.startswith("scores.safetensors holds")
    assert hint in caught.value.hint
    assert calibrations == []


def test_scores_of_all_layers_serve_some_of_them(calibrations: list[int]) -> None:
    """Those of a group do not depend on which others are cut, where no budget is part of the score."""
    saved, part = kept(TAYLOR), f"taylor{{{SAMPLES},layers=0:1}}"
    fresh = run(part)
    calibrations.clear()
    again_used = run(part, again(saved))
    assert calibrations == []
    assert fresh.ledger.plan is not None
    assert again_used.ledger.plan is not None
    assert {n: k.tolist() for n, k in fresh.ledger.plan.keep.items()} == {
        n: k.tolist() for n, k in again_used.ledger.plan.keep.items()
    }


def test_scores_of_text_need_the_text_and_all_groups() -> None:
    saved = kept(TAYLOR)
    state = decoder_state(llama(), traced(), calibration=None, scores=again(saved))
    with pytest.raises(RequestError, match="scores that were computed on text") as caught:
        run_passes(state, TAYLOR)
    assert "--calib" in caught.value.hint
    fewer = again(saved)
    fewer.arrays = dict(list(saved.arrays.items())[1:])
    with pytest.raises(RequestError, match="holds no scores of 1 groups, "):
        run(TAYLOR, fewer)


SCORE = "taylor{samples=3,length=16}"


def test_apply_keeps_and_uses_them(tmp_path: Path) -> None:
    file = tmp_path / "scores.safetensors"
    first = fxprune.apply("demo", SCORE, ratio=0.5, scores=file, dry_run=True)
    before = file.read_bytes()
    assert load_file(file).keys() == {change.name for change in first.groups}
    found = fxprune.apply("demo", SCORE, ratio=0.5, scores=file, dry_run=True)
    assert found.groups == first.groups
    assert found.texts == first.texts
    assert found.texts != []
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.slow
def test_the_command_line_writes_the_bytes_of_an_unsaved_run(tmp_path: Path) -> None:
    file = tmp_path / "scores.safetensors"
    fxprune.apply("demo", SCORE, ratio=0.1, scores=file, dry_run=True)
    command = ["apply", "demo", "--pass", SCORE, "--target", "params=0.8", "--scores", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", *command, "--out", str(tmp_path / "a"), "--json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    fxprune.apply("demo", SCORE, target="params=0.8", out=tmp_path / "b")
    for name in ("model.safetensors", "fxprune.plan", "fxprune.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_files_and_pipelines_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    taylor, random, lora = (parse_pipeline([text], PASSES) for text in ("taylor", "magnitude", "lora"))
    file = tmp_path / "s.safetensors"
    assert open_scores(None, lora, texts=False) is None
    rows: list[tuple[Any, Any, bool, str, str]] = [
        (file, lora, True, "no pass of this run computes scores", "taylor"),
        (file, random, True, "scores of 'magnitude' need no text", "leave --scores out"),
        (file, taylor, False, "cannot be used with --loss", "leave --scores out"),
        (tmp_path / "no" / "s", taylor, True, "does not exist", "make the directory"),
        (_written(file, b"nothing"), taylor, True, "not a scores file of fxprune", "a new path"),
        (_saved(tmp_path / "plain", {}), taylor, True, "not a scores file of fxprune", "a new path"),
        (
            _saved(tmp_path / "new", {SCORES_ENTRY: '{"version": 7}'}),
            taylor,
            True,
            "format version 7, this fxprune reads 1",
            "again",
        ),
    ]
    for path, pipeline, texts, message, hint in rows:
        with pytest.raises(RequestError) as caught:
            open_scores(path, pipeline, texts=texts)
        assert message in caught.value.message
        assert hint in caught.value.hint


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _saved(path: Path, metadata: dict[str, str]) -> Path:
    save_file({"g": np.zeros(2)}, path, metadata=metadata)
    return path
