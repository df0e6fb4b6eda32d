"""Nothing makes a tensor on the CPU that meets the model's tensors: everything runs on a device that refuses that.

The device is in the memory of the host and computes what the CPU computes, so results can be compared. It belongs to a
process for good, so each test has a process of its own.
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

PIPELINES = {
    "gradients": (
        "taylor{variant=vector,samples=3,length=16}",
        "taylor{variant=element1,samples=3,length=16}",
        "taylor{variant=second,samples=3,length=16}",
        "taylor{variant=element2,samples=3,length=16}",
        "fisher{samples=4,length=16}",
    ),
    "activations": (
        "wanda{samples=4,length=16}",
        "flap{samples=4,length=16}",
        "activation{samples=4,length=16}",
        "obs{samples=8,length=16}",
        "obs{metric=outputs,by=global,samples=8,length=16,target=params:0.8}",
    ),
    "refits": (
        "magnitude,compensate{samples=8,length=16}",
        "random,compensate{samples=8,length=16,residual=false}",
        "taylor{samples=3,length=16,by=search,moves=2,target=params:0.8}",
        "generate{windows=4,length=16},taylor{samples=3,length=16}",
    ),
    "layers": (
        "drop{layers=1,samples=4,length=16},taylor{samples=3,length=16}",
        "drop{layers=1,by=perplexity,samples=4,length=16}",
        "drop{sub_blocks=1,samples=4,length=16}",
        "drop{sub_blocks=1,by=perplexity,samples=4,length=16}",
    ),
    "training": (
        "taylor{samples=3,length=16},lora{steps=2,batch=4,length=16}",
        "taylor{samples=3,length=16},finetune{steps=2,batch=4,length=16}",
        "taylor{samples=3,length=16},distill{steps=2,batch=4,length=16,blocks=2}",
    ),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("decoder"), dtype=torch.float32)
    word_tokenizer(["[unk]", *WORDS.split()]).save_pretrained(folder)
    return folder


def on_device(decoder: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """What came of the cases, each by its name."""
    command = [sys.executable, str(SCRIPT), str(decoder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == set(cases)
    assert not [f"{case}: {line['error']}" for case, line in found.items() if line["error"]]
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", PIPELINES)
def test_passes_stay_on_the_device(decoder: Path, kind: str) -> None:
    found = on_device(decoder, *PIPELINES[kind])
    assert all(line["plans"] for line in found.values())
    # A product is another kernel there, and a refit magnifies how it rounds.
    far = {case: line["difference"] for case, line in found.items()}
    assert not {case: how for case, how in far.items() if not how <= half_the_digits(torch.float32)}


@pytest.mark.timeout(900)
def test_calls_stay_on_the_device(decoder: Path) -> None:
    found = on_device(decoder, "evaluated", "module", "rebuilt", "timed")
    assert found["evaluated"]["where"] == "checked:0"
    there, here = found["evaluated"]["perplexities"]
    assert there == pytest.approx(here, rel=1e-5)
    there, here = found["module"]["kept"]
    assert there == here
    assert there
    assert found["module"]["home"] == "cpu"
    assert found["rebuilt"]["rebuilt"]
    assert found["rebuilt"]["outputs"] == [5, 4]
    assert found["timed"]["seconds"] > 0


@pytest.mark.timeout(900)
def test_an_artifact_does_not_tell_where_it_was_made(decoder: Path) -> None:
    there, here = on_device(decoder, "written")["written"]["digests"]
    assert "plan.safetensors" in there
    assert there == here


def test_the_device_refuses_tensors_of_another(decoder: Path) -> None:
    stopped = on_device(decoder, "refused")["refused"]["stopped"]
    assert len(stopped) == 8
    assert all(stopped.values()), stopped
