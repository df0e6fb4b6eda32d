"""What has changed since an interrupted run, in the words of what the user typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxprune.api.pruning.run_identity import changes, identity, named_example
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.shrink.replay import Replay
from fxprune.tracer.model import ModelSource, resolve

from ...checkpoints import LLAMA

TEXTS = {"calibration": None, "recovery": None}
OPTIONS = {"example": None, "loss": None, "scores": None}


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    LLAMA.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    return resolve(tmp_path / "model", weights=False)


def of(source: ModelSource, passes: str = "taylor,lora", **given: Any) -> dict[str, Any]:
    """The identity of a run; texts are named by their files beside the model."""
    places = {part: given.pop(part, None) for part in TEXTS}
    texts = {part: name and source.directory.parent / name for part, name in places.items()}
    return identity(source, parse_pipeline(passes, PASSES), texts, **{**OPTIONS, **given})


ROWS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, ""),
    ({}, {"passes": "taylor,lora{steps=4}"}, "lora.steps was 0 and is 4 now"),
    ({"passes": "taylor,lora{steps=40}"}, {"passes": "taylor,lora{steps=4}"}, "lora.steps was 40 and is 4 now"),
    ({"passes": "random,random"}, {"passes": "random,random{seed=7}"}, "pass 2, random.seed was 0 and is 7 now"),
    ({}, {"passes": "taylor"}, "the passes were taylor,lora and are taylor now"),
    ({}, {"calibration": "a.txt"}, "--calib was not given before"),
    ({"recovery": "a.txt"}, {}, "--data was given before and is missing now"),
    ({"calibration": "a.txt"}, {"calibration": "b.txt"}, "--calib names another text now"),
    ({"example": "x=int64[2,3]"}, {"example": "x=int64[2,5]"}, "--example was x=int64[2,3] and is x=int64[2,5] now"),
    (
        {"passes": "taylor,lora{steps=40,lr=0.1,r=4}"},
        {"passes": "taylor,lora{steps=4,lr=0.2,r=2}", "loss": "m:f"},
        "lora.lr was 0.1 and is 0.2 now; lora.r was 4 and is 2 now; lora.steps was 40 and is 4 now; and 1 more",
    ),
]


@pytest.mark.parametrize(("before", "now", "message"), ROWS)
def test_what_changed(before: dict[str, Any], now: dict[str, Any], message: str, source: ModelSource) -> None:
    assert changes(of(source, **before), of(source, **now)) == message


def test_files_of_the_model(source: ModelSource) -> None:
    before = of(source)
    (source.directory / "config.json").write_text("{}")
    (source.directory / "extra.json").write_text("{}")
    now = of(source)
    assert changes(before, now) == "config.json of the model has changed; extra.json of the model is new"
    assert changes(now, before) == "config.json of the model has changed; extra.json of the model is missing"


def test_versions(source: ModelSource) -> None:
    before, now = of(source), of(source)
    before["versions"] = {**before["versions"], "peft": "0.1"}
    assert changes(before, now) == f"the version of peft was 0.1 and is {now['versions']['peft']} now"


def test_a_plan_is_called_what_was_typed(source: ModelSource) -> None:
    before, now = (identity(source, [Replay(sha256=text)], TEXTS, **OPTIONS) for text in ("a", "b"))
    assert changes(before, now) == "--plan names a file with other content now"


def test_a_record_without_passes_is_of_another_run(source: ModelSource) -> None:
    assert changes({}, of(source)).startswith("the passes were none and are taylor,lora now; ")


def test_example_inputs_in_a_file_count_by_what_they_hold(source: ModelSource) -> None:
    file = source.directory.parent / "inputs.npz"
    file.write_bytes(b"one")
    before = of(source, example=named_example(str(file)))
    assert not changes(before, of(source, example=named_example(str(file))))
    file.write_bytes(b"two")
    assert "--example was" in changes(before, of(source, example=named_example(str(file))))
    assert named_example("x=int64[2]") == "x=int64[2]"
    assert named_example(None) is None
