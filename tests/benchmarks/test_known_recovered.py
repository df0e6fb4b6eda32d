"""Recovered rows of the benchmark of known models: what is trained, for how long, and what the page says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxprune.benchmarks.known_models import recovered, runs
from fxprune.benchmarks.known_models.columns import headers
from fxprune.benchmarks.known_models.recovered import (
    BATCH,
    HELD,
    KEPT,
    RECOVERED,
    SHORT,
    TRIALS,
    Recovery,
    steps_within,
    trained,
)
from fxprune.benchmarks.known_models.recovered_page import TITLE, recovered_section
from fxprune.benchmarks.known_models.rows_file import is_whole, read_rows, write_rows
from fxprune.benchmarks.known_models.runs import DENSE, METHODS, PROMPTS, TEXTS, VALIDATION, Run
from fxprune.benchmarks.zeroshot import TASKS
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES

from ..api.pruning.interrupted import VOCABULARY, write_source
from ..corpora import UnequalRows
from ..decoders import llama
from ..passes.recover.test_distill import damaged

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("how", {**RECOVERED, **TRIALS}.values())
def test_the_passes_can_be_run(how: Recovery) -> None:
    (step,) = parse_pipeline(how.text(9), PASSES)
    step.check()
    options = vars(step)
    assert how.base in METHODS
    assert (options["steps"], options["batch"], options["validation"]) == (9, BATCH, HELD)
    assert (options["train_on"], options["lr"]) == ("answers", float(how.rate))


def test_a_recovery_is_of_one_kind_for_all_that_is_compared() -> None:
    """LLM-Pruner's cut gets the same pass, rate and time."""
    by_name = {name.partition(" + ")[2]: how for name, how in RECOVERED.items() if how.base == "best"}
    for name, how in RECOVERED.items():
        same = by_name[name.partition(" + ")[2]]
        assert (how.passes, how.rate, how.seconds) == (same.passes, same.rate, same.seconds)


@pytest.mark.parametrize("name", ["lora", "distill"])
def test_a_training_is_in_place_and_the_dense_model_stays(name: str) -> None:
    dense = llama()
    model = damaged(dense)
    before = {kind: [tensor.clone() for tensor in one.parameters()] for kind, one in (("dense", dense), ("it", model))}
    text = f"{name}{{batch=2,micro_batch=2,length=8,steps=2,lr=0.01,validation=2}}"
    report = trained(text, model, dense, UnequalRows())
    assert report["steps"] == 2
    assert all(torch.equal(one, two) for one, two in zip(before["dense"], dense.parameters(), strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(before["it"], model.parameters(), strict=True))


def test_steps_follow_from_what_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps take six seconds more than one: two seconds each, and the losses on what is held out take some."""
    clock = iter([0.0, 5.0, 10.0, 21.0])
    monkeypatch.setattr(recovered.time, "process_time", lambda: next(clock))
    seen: list[Any] = []
    monkeypatch.setattr(recovered, "trained", lambda text, model, *_: seen.append((text, model)))
    model = llama()
    steps = steps_within(Recovery("best", "lora{steps=STEPS,validation=HELD}", "0.1", 400), model, None, None)
    assert [text for text, _ in seen] == ["lora{steps=1,validation=0}", "lora{steps=4,validation=0}"]
    assert all(one is not model for _, one in seen)
    assert steps == round(200 - 3 * HELD / BATCH)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("passes", ["lora", "distill"])
def test_a_pruned_model_is_made_once_and_trained(passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the model's folder to the row, but for what is measured of it."""
    source = write_source(tmp_path / "models" / "m")
    words = " ".join(list(VOCABULARY)[i * i % 26] for i in range(600))
    for text in TEXTS:
        (tmp_path / f"{text}-calib.txt").write_text(words)
    row = {"instruction": "a b c", "input": "", "output": "d e f"}
    (tmp_path / recovered.ALPACA).write_text(json.dumps([row] * 12))
    text = f"{passes}{{train_on=answers,length=100,batch=2,micro_batch=2,lr=RATE,steps=STEPS,validation=HELD}}"
    how = Recovery("small", text, "0.01", 60)
    monkeypatch.setitem(runs.METHODS, "small", "taylor{ratio=0.25,samples=4,length=8}")
    monkeypatch.setattr(recovered, "HELD", 2)
    monkeypatch.setattr(Recovery, "text", lambda self, steps, held=2: _filled(self, min(steps, 3), held))
    monkeypatch.setitem(recovered.RECOVERED, "small + it", how)
    measured: list[Any] = []
    monkeypatch.setattr(recovered, "quality", lambda model, *_, **given: measured.append((model, given)) or {})
    options = argparse.Namespace(models=source.parent, text=tmp_path, tasks=tmp_path, work=tmp_path / "work")
    found = recovered.recovered(Run("m", "small + it", 0.75), options, ["x"])
    ((model, given),) = measured
    assert given["dense"] == ["x"]
    assert found["kept"] == sum(tensor.numel() for tensor in model.parameters()) / _count(source)
    assert found["kept"] < 1
    assert "steps=3,validation=2}" in found["training"]["pass"]
    assert found["seconds"] >= found["training"]["seconds"] > 0
    monkeypatch.setattr("fxprune.apply", None)
    assert recovered.recovered(Run("m", "small + it", 0.75), options, ["x"])["kept"] == found["kept"]


def _filled(how: Recovery, steps: int, held: int) -> str:
    return how.passes.replace("RATE", how.rate).replace("HELD", str(held)).replace("STEPS", str(steps))


def _count(source: Path) -> int:
    from transformers import AutoModelForCausalLM

    return sum(tensor.numel() for tensor in AutoModelForCausalLM.from_pretrained(source).parameters())


def row(seed: int, **more: Any) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "kept": 0.8, "seconds": 500.0, "peak_gb": 2.0, "date": "2026-11-30",
        "losses": {text: (3 + draw.normal(size=9)).tolist() for text in TEXTS},
        "answers": [f"answer | {seed} {number}" for number in range(len(PROMPTS))],
        "tasks": {name: "".join(map(str, draw.integers(0, 2, 40))) for name in TASKS},
        "written": {"exact": "01" * 15, "repeated": [0.5], "agreement": [0.5], "first": "01"},
        **more,
    }  # fmt: skip


def test_the_section_shows_all_models_and_all_answers() -> None:
    training = {"pass": "lora{steps=9}", "seconds": 1802.4, "validation": {}, "tokens": 10}
    rows = {Run("m", DENSE).key: row(0), Run("m", "best", KEPT).key: row(1), Run("m", "paper", KEPT).key: row(2)}
    found = {Run("m", "best + lora", KEPT).key: row(3, training=training)}
    assert recovered_section({}, rows, "m") == []
    lines = recovered_section(found, rows, "m")
    assert lines[0] == TITLE
    (line,) = [line for line in lines if line.startswith("| best + lora | `lora{steps=9}` | 1802 | 2.0 |")]
    assert line.count("|") == 6 + len(headers())
    (prompt,) = [line for line in lines if line.startswith(f"| {PROMPTS[3]} |")]
    assert [f"answer \\| {seed} 3" in prompt for seed in range(4)] == [True] * 4
    assert not any("validation split" in line for line in lines)
    name, how = next(iter(TRIALS.items()))
    assert how.seconds == SHORT
    found[Run("m", name, KEPT, split=VALIDATION).key] = row(4, training=training)
    assert any("| best, `lora{steps=9}` | 1802 |" in line for line in recovered_section(found, rows, "m"))


def test_rows_are_read_as_they_were_written(tmp_path: Any) -> None:
    file = tmp_path / "rows.json"
    assert read_rows(file) == {}
    write_rows(file, {"a": {"tasks": {"x": "01"}}, "b": {"tasks": {}, "written": {}}})
    rows = read_rows(file)
    assert list(rows) == ["a", "b"]
    assert [is_whole(rows.get(key), tmp_path) for key in "abc"] == [False, True, False]
    assert [is_whole(rows.get(key), None) for key in "abc"] == [True, True, False]
