"""Nothing makes a tensor on the CPU that meets the model's tensors: everything runs on a device that refuses that.

The device is in the memory of the host and computes what the CPU computes, so results can be compared. It belongs to a
process for good, so one of its own runs all cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.runtime.tolerances import half_the_digits

from ..checkpoints import write_checkpoint
from ..corpora import word_tokenizer

SCRIPT = Path(__file__).with_name("on_checked_device.py")
WORDS = "one two three four five six seven eight nine ten calibration recovery evaluation"

PIPELINES = (
    "taylor{variant=vector,samples=3,length=16}",
    "taylor{variant=element1,samples=3,length=16}",
    "taylor{variant=second,samples=3,length=16}",
    "taylor{variant=element2,samples=3,length=16}",
    "fisher{samples=4,length=16}",
    "wanda{samples=4,length=16}",
    "flap{samples=4,length=16}",
    "activation{samples=4,length=16}",
    "obs{samples=8,length=16}",
    "obs{metric=outputs,by=global,samples=8,length=16,target=params:0.8}",
    "magnitude,compensate{samples=8,length=16}",
    "random,compensate{samples=8,length=16,residual=false}",
    "taylor{samples=3,length=16,by=search,moves=2,target=params:0.8}",
    "generate{windows=4,length=16},taylor{samples=3,length=16}",
    "drop{layers=1,samples=4,length=16},taylor{samples=3,length=16}",
    "drop{layers=1,by=perplexity,samples=4,length=16}",
    "drop{sub_blocks=1,samples=4,length=16}",
    "drop{sub_blocks=1,by=perplexity,samples=4,length=16}",
    "taylor{samples=3,length=16},lora{steps=2,batch=4,length=16}",
    "taylor{samples=3,length=16},finetune{steps=2,batch=4,length=16}",
    "taylor{samples=3,length=16},distill{steps=2,batch=4,length=16,blocks=2}",
)
CALLS = ("refused", "evaluated", "written", "module", "rebuilt", "timed")

# The first test waits for the process that runs all cases, which takes a minute.
pytestmark = [pytest.mark.wide, pytest.mark.timeout(1200)]

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of every case on a tiny model with a tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("decoder"), dtype=torch.float32)
    word_tokenizer(["[unk]", *WORDS.split()]).save_pretrained(folder)
    command = [sys.executable, str(SCRIPT), str(folder), *PIPELINES, *CALLS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_passes_stay_on_the_device(found: Found, pipeline: str) -> None:
    line = found[pipeline]
    assert not line["error"], line["error"]
    assert line["plans"]
    # A product is another kernel there, and a refit magnifies how it rounds.
    assert line["difference"] <= half_the_digits(torch.float32)


@pytest.mark.parametrize("call", CALLS)
def test_calls_stay_on_the_device(found: Found, call: str) -> None:
    assert not found[call]["error"], found[call]["error"]


def test_what_is_measured_on_the_device(found: Found) -> None:
    assert found["evaluated"]["where"] == "checked:0"
    there, here = found["evaluated"]["perplexities"]
    assert there == pytest.approx(here, rel=1e-5)
    assert found["timed"]["seconds"] > 0


def test_a_module_comes_back(found: Found) -> None:
    there, here = found["module"]["kept"]
    assert there == here
    assert there
    assert found["module"]["home"] == "cpu"
    assert found["rebuilt"]["rebuilt"]
    assert found["rebuilt"]["outputs"] == [5, 4]


def test_an_artifact_does_not_tell_where_it_was_made(found: Found) -> None:
    there, here = found["written"]["digests"]
    assert "fxprune.plan" in there
    assert there == here


def test_the_device_refuses_tensors_of_another(found: Found) -> None:
    stopped = found["refused"]["stopped"]
    assert len(stopped) == 8
    assert all(stopped.values()), stopped
