"""A run that broke off inside a training goes on there, whatever stages of earlier passes are saved on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxprune import api
from fxprune.api.pruning import resume
from fxprune.backends.huggingface import weight_source
from fxprune.passes.recover import kept_training
from fxprune.passes.recover.kept_training import KeptTraining, TrainingState

from ...checkpoints import contents, write_checkpoint
from ...corpora import word_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}
STEPS, BROKEN_AFTER = 5, 3


class Broken(Exception):
    """What breaks a training off."""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of ``apply``; every step of a training is kept."""
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    monkeypatch.setattr(kept_training, "SHARE", 0)
    monkeypatch.setattr(resume, "EVERY", 0.0)
    source = write_checkpoint(tmp_path / "source")
    word_tokenizer(VOCABULARY).save_pretrained(source)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(list(VOCABULARY)[i * i % 26] for i in range(400)), encoding="utf-8")
    passes = f"random,magnitude,lora{{steps={STEPS},batch=2,micro_batch=2,length=8}}"
    return {"model": str(source), "passes": passes, "ratio": 0.25, "data": str(text)}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are kept, in order; the test breaks the training off by ``BROKEN_AFTER`` at its end."""
    steps: list[int] = []
    keep = KeptTraining.keep

    def told(self: KeptTraining, state: TrainingState) -> None:
        keep(self, state)
        steps.append(state.step)
        if steps == list(range(1, BROKEN_AFTER + 1)):
            raise Broken

    monkeypatch.setattr(KeptTraining, "keep", told)
    return steps


@pytest.mark.wide
@pytest.mark.parametrize("worth", [0.0, 1000.0], ids=["earlier passes saved", "nothing saved before"])
def test_a_training_goes_on_after_its_earlier_passes_ran_again(
    job: dict[str, Any], kept: list[int], worth: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "WORTH", worth)
    with pytest.raises(Broken):
        api.apply(**job, out=str(tmp_path / "out"))
    there = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert there == {".out.halfway"} | ({".out.stages"} if not worth else set())
    assert json.loads((tmp_path / ".out.halfway" / "training.json").read_text())["place"] == 3
    api.apply(**job, out=str(tmp_path / "out"), resume=True)
    assert kept == [*range(1, BROKEN_AFTER + 1), *range(BROKEN_AFTER + 1, STEPS + 1)]
    api.apply(**job, out=str(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "source", "text.txt"}
