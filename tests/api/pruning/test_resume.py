"""--resume: a run that broke off goes on after its last finished pass, and gives the bytes of one that did not."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxprune import api
from fxprune.api.pruning import model_run, resume, stage_file
from fxprune.api.pruning.stored_state import StoredState
from fxprune.backends.artifact import RECORD
from fxprune.backends.huggingface import weight_source
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes import state
from fxprune.passes.drop.drop import Drop
from fxprune.passes.recover.compensate import Compensate
from fxprune.passes.recover.lora import Lora
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.score.random import Random
from fxprune.passes.score.taylor import Taylor
from fxprune.passes.state import ON_RESUME, OnResume, State

from ...checkpoints import TIED, contents
from .interrupted import (
    COMPENSATE,
    GPT2,
    LORA,
    TAYLOR,
    again,
    broken,
    kept_after,
    write_source,
)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes that run."""
    names: list[str] = []
    for step in (Random, Magnitude, Taylor, Drop, Compensate, Lora):

        def noting(self: Any, given: State, run: Any = step.run) -> None:
            names.append(self.name)
            run(self, given)

        monkeypatch.setattr(step, "run", noting)
    return names


CASES = [
    pytest.param((None, "random,magnitude", model_run.ModelRun, "save", []), id="streamed, broken while writing"),
    pytest.param((None, f"{TAYLOR},{COMPENSATE},{LORA}", Lora, "recover", ["lora"]), id="recovery"),
    pytest.param((None, f"{TAYLOR},{LORA}", model_run.ModelRun, "save", []), id="recovered", marks=pytest.mark.slow),
    pytest.param(
        (TIED, f"drop{{layers=1,samples=4,length=8}},{TAYLOR},{LORA}", Taylor, "scores", ["taylor", "lora"]),
        id="layers",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        (GPT2, f"drop{{sub_blocks=1,samples=4,length=8}},{TAYLOR}", Taylor, "scores", ["taylor"]),
        id="free, sub-blocks",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        (GPT2, f"{TAYLOR},{COMPENSATE}", Compensate, "_refit", ["compensate"]), id="free", marks=pytest.mark.slow
    ),
]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_goes_on_gives_the_same_bytes(
    case: tuple[Any, str, type, str, list[str]], tmp_path: Path, text: Path, ran: list[str]
) -> None:
    config, passes, owner, method, rest = case
    source = write_source(tmp_path / "source", config)
    texts = {} if "magnitude" in passes else {"calib": text}
    texts |= {"data": text} if "lora" in passes and texts else {}

    def apply(out: str, **options: Any) -> api.Applied:
        return api.apply(source, passes, ratio=0.5, out=tmp_path / out, **texts, **options)

    torch.manual_seed(1)
    whole = apply("whole")
    torch.manual_seed(1)
    broken(owner, method, lambda: apply("out", resume=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.stages", "source", "whole"]
    torch.manual_seed(2)
    ran.clear()
    applied = apply("out", resume=True)
    assert ran == rest
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert applied.resumed
    assert [step.text for step in applied.steps] == [step.text for step in whole.steps]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


KILLED = """
import contextlib, os, signal, sys
from fxprune.api.pruning import resume
from fxprune.backends.huggingface import save, weight_source
from fxprune.cli import main
save.FreshProcess = contextlib.nullcontext
weight_source.verify_written = lambda *_: {"the same": "in every record"}
keep, at = resume.Stages.keep, int(sys.argv[1])
def kept(self, done, finished, parts):
    keep(self, done, finished, parts)
    if done == at:
        os.kill(os.getpid(), signal.SIGKILL)
resume.Stages.keep = kept
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_between_passes(at: int, tmp_path: Path, text: Path) -> None:
    source = write_source(tmp_path / "source")
    command = [str(source), "--pass", f"{TAYLOR},{COMPENSATE},{LORA}", "--ratio", "0.5"]
    command = ["apply", *command, "--calib", str(text), "--data", str(text)]
    program = [sys.executable, "-c", KILLED]
    subprocess.run([*program, "9", *command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    command += ["--out", str(tmp_path / "out"), "--resume", "--json"]
    killed = subprocess.run([*program, str(at), *command], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*program, "9", *command], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["resumed"].startswith(("taylor", "compensate", "lora")[at - 1])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def test_what_is_packed_is_there_again(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3).to(torch.bfloat16)
    data: dict[str, Any] = {
        "a": {"tied": weight, "and": weight, "array": np.arange(3), "wide": np.arange(2, dtype=np.uint32)},
        "b": [1, 0.1, float("inf"), None, True, "text", torch.empty(0)],
    }
    packed = stage_file.Packed.of(data)
    assert packed.size == weight.nbytes + 3 * 8 + 2 * 4
    stage_file.write_stage(tmp_path, packed)
    found = stage_file.read_stage(tmp_path, "").whole()
    assert torch.equal(found["a"]["tied"], weight)
    assert torch.equal(found["a"]["and"], weight)
    assert [found["a"][name].dtype for name in ("array", "wide")] == [np.int64, np.uint32]
    assert found["a"]["array"].tolist() == [0, 1, 2]
    assert found["b"][:6] == data["b"][:6]
    assert found["b"][6].shape == (0,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"b": object()}}, "a/b is a object"),
        ({"a": torch.empty(1, device="meta")}, "the tensor a has no values"),
        ({"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}}, "the tensor a/b has no values, or no name of its own"),
        ({"a": {stage_file.TENSOR: "other"}}, "a holds a key that stands for tensors"),
    ],
)
def test_what_cannot_be_packed(data: dict[str, Any], message: str) -> None:
    with pytest.raises(stage_file.UnsavableError, match=message):
        stage_file.Packed.of(data)


def test_a_stage_holds_nothing_that_runs(copied: Path) -> None:
    assert sorted(contents(copied / ".out.stages")) == [RECORD, stage_file.TENSORS]


def test_what_it_says(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    said: list[str] = []
    again(copied, resume=False, out=tmp_path / "other", progress=said.append)
    assert not any("resum" in line for line in said)
    again(copied, out=tmp_path / "third", progress=said.append)
    assert f"no interrupted run of {tmp_path / 'third'} found; starting from the beginning" in said
    shutil.copytree(copied / ".out.stages", tmp_path / ".fourth.stages")
    again(copied, resume=False, out=tmp_path / "fourth", progress=said.append)
    assert f"an interrupted run of {tmp_path / 'fourth'} exists; --resume would continue it" in said
    assert not (tmp_path / ".fourth.stages").exists()
    command = ["apply", str(copied / "source"), "--pass", "random", "--ratio", "0.5", "--out", str(copied / "out")]
    assert main([*command, "--resume"]) == 0
    assert "resumed after random{ratio=0.5}" in capsys.readouterr().out


def test_work_of_more_than_a_minute_is_kept_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "source")
    monkeypatch.setattr(resume, "WORTH", 3600)
    assert not kept_after(tmp_path, resume=False)
    monkeypatch.setattr(resume, "WORTH", 0)
    assert kept_after(tmp_path, resume=False)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage_file, "save_file", save)


def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10_000))


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(StoredState, "of", refused)


def not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredState, "to_json", lambda _: {"graph": {"of": lambda: 0}})


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (full_disk, "the disk is full"),
        (little_room, "not saved for --resume: needs 0.0 GB, 0.0 GB are free"),
        (no_memory, "not saved for --resume: [Errno 12] Cannot allocate memory"),
        (not_kept, "not saved for --resume: state/graph/of is a function"),
    ],
)
def test_a_run_does_not_fail_for_what_it_cannot_keep(
    trouble: Callable[[pytest.MonkeyPatch], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source")
    trouble(monkeypatch)
    said: list[str] = []
    assert not kept_after(tmp_path, progress=said.append)
    assert any(message in line for line in said)


def test_every_field_of_a_state_says_where_a_run_that_goes_on_has_it_from() -> None:
    """Also one that is added; what is stored is restored by name."""
    source = inspect.getsource(StoredState.restore)
    assert dataclasses.fields(State)
    for part in dataclasses.fields(State):
        if ON_RESUME in part.metadata:
            assert part.metadata[ON_RESUME] is OnResume.ANEW
            continue
        for field in dataclasses.fields(getattr(state, str(part.type))):
            how = field.metadata[ON_RESUME]
            assert isinstance(how, OnResume), field.name
            if how is OnResume.STORED:
                assert f"{part.name}.{field.name}" in source or f"self.{field.name}" in source


def test_a_failed_pass_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "source")
    monkeypatch.setattr(Magnitude, "scores", lambda *_: (_ for _ in ()).throw(FxpruneError("no")))
    with pytest.raises(FxpruneError, match="no"):
        again(tmp_path, "random,magnitude")
    assert json.loads((tmp_path / ".out.stages" / RECORD).read_text())["stage"]["data"]["done"] == 1


@pytest.mark.wide
def test_scores_of_a_pass_that_does_not_run_again_are_written(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    write_source(tmp_path / "source")

    def run(**options: Any) -> api.Applied:
        return again(tmp_path, f"{TAYLOR},random", calib=text, **options)

    run(scores=tmp_path / "whole.safetensors", out=tmp_path / "whole", resume=False)
    broken(Random, "scores", lambda: run(scores=tmp_path / "scores.safetensors"))
    assert not (tmp_path / "scores.safetensors").exists()
    with pytest.raises(RequestError, match="--scores was given before and is missing now"):
        run()
    run(scores=tmp_path / "scores.safetensors")
    assert (tmp_path / "scores.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
