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
from transformers import GPT2Config, LlamaConfig

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

from ...checkpoints import TIED, WIDTHS, contents, write_checkpoint
from ...corpora import word_tokenizer

VOCABULARY = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}
GPT2 = GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=26, n_positions=64, bos_token_id=0, eos_token_id=0)
TAYLOR, COMPENSATE = "taylor{samples=4,length=8}", "compensate{samples=8,length=8}"
LORA = "lora{steps=2,batch=2,length=8}"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(list(VOCABULARY)[i * i % 26] for i in range(400)))
    return file


def write_source(folder: Path, config: Any = None, *, words: Any = None, **options: Any) -> Path:
    source = write_checkpoint(folder, config or LlamaConfig(**WIDTHS | {"num_hidden_layers": 3}), **options)
    (words or word_tokenizer(VOCABULARY)).save_pretrained(source)
    return source


class Broken(Exception):
    """What breaks a run off."""


def broken(owner: type, method: str, run: Callable[[], object]) -> None:
    """Run with a method of a class that raises."""

    def raises(*_: Any, **__: Any) -> None:
        raise Broken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, raises)
        with pytest.raises(Broken):
            run()


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


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_goes_on_gives_the_same_bytes(
    case: tuple[Any, str, type, str, list[str]], tmp_path: Path, text: Path, ran: list[str]
) -> None:
    config, passes, owner, method, rest = case
    source = write_source(tmp_path / "source", config)
    texts = {} if "magnitude" in passes else {"calib": text, "data": text}

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


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and the stage of a run that broke off while it wrote."""
    folder = tmp_path_factory.mktemp("begun")
    source = write_source(folder / "source")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run, "save", full)
        with pytest.raises(OSError, match="No space"):
            api.apply(source, "random", ratio=0.5, out=folder / "out", resume=True)
    return folder


def again(folder: Path, passes: str = "random", **options: Any) -> api.Applied:
    return api.apply(folder / "source", passes, **{"ratio": 0.5, "out": folder / "out", "resume": True} | options)


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "copied"))  # keeps the times of files, which tell a source


def change_source(folder: Path) -> None:
    os.utime(folder / "source" / "model.safetensors", (1, 1))


def cut_off_tensors(folder: Path) -> None:
    stage = folder / ".out.stages" / stage_file.TENSORS
    stage.write_bytes(stage.read_bytes()[:1000])


def change_tensors(folder: Path) -> None:
    stage = folder / ".out.stages" / stage_file.TENSORS
    stage.write_bytes(stage.read_bytes()[:-1] + b"!")


def remove_tensors(folder: Path) -> None:
    (folder / ".out.stages" / stage_file.TENSORS).unlink()


def cut_off_record(folder: Path) -> None:
    (folder / ".out.stages" / RECORD).write_text("{")


def nest_record(folder: Path) -> None:
    (folder / ".out.stages" / RECORD).write_text('{"stage": ' + "[" * 100_000)


def change_record(folder: Path) -> None:
    record = folder / ".out.stages" / RECORD
    record.write_text(record.read_text().replace("random", "raNdom", 1))


def rewritten(change: Callable[[dict[str, Any]], None], folder: Path) -> None:
    """Change what a stage holds, as somebody can who knows how it is sealed."""
    path = folder / ".out.stages" / RECORD
    stage = json.loads(path.read_text())["stage"]
    change(stage)
    path.write_text(json.dumps({"sha256": stage_file._digest(stage), "stage": stage}))


def older(folder: Path) -> None:
    rewritten(lambda stage: stage.update(format=1), folder)


def pickled(folder: Path) -> None:
    """As it was when a stage was a pickle."""
    shutil.rmtree(folder / ".out.stages")
    (folder / ".out.stages").mkdir()
    (folder / ".out.stages" / RECORD).write_text('{"done": 1, "run": {}}')
    (folder / ".out.stages" / "stage.pt").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")


def other_version(folder: Path) -> None:
    rewritten(lambda stage: stage["data"]["run"]["versions"].update(fxprune="0.0.1"), folder)


def all_passes(folder: Path) -> None:
    rewritten(lambda stage: stage["data"].update(done=7), folder)


def cut_more(folder: Path) -> None:
    def change(stage: dict[str, Any]) -> None:
        keep = stage["data"]["state"]["finished"][0]["decisions"][0]["keep"]
        keep["of nothing"] = keep[min(keep)]

    rewritten(change, folder)


def cut_others(folder: Path) -> None:
    def change(stage: dict[str, Any]) -> None:
        keep = stage["data"]["state"]["finished"][0]["decisions"][0]["keep"]
        first, second, *_ = (name for name in keep if name.endswith(":width"))
        keep[first], keep[second] = keep[second], keep[first]

    rewritten(change, folder)


def decide_otherwise(folder: Path) -> None:
    rewritten(lambda stage: stage["data"]["state"]["finished"][0]["decisions"][0].update(name="run"), folder)


def fewer_finished(folder: Path) -> None:
    rewritten(lambda stage: stage["data"]["state"]["finished"].clear(), folder)


def no_generators(folder: Path) -> None:
    rewritten(lambda stage: stage["data"]["generators"].update(python=[3, [1, 2], None]), folder)


def dangling(folder: Path) -> None:
    shutil.rmtree(folder / ".out.stages")
    (folder / ".out.stages").symlink_to(folder / "nowhere")


def no_state(folder: Path) -> None:
    rewritten(lambda stage: stage["data"].update(state=[1]), folder)


def link_folder(folder: Path) -> None:
    (folder / ".out.stages").rename(folder / "elsewhere")
    (folder / ".out.stages").symlink_to(folder / "elsewhere")


def link_record(folder: Path) -> None:
    path = folder / ".out.stages" / RECORD
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def link_tensors(folder: Path) -> None:
    path = folder / ".out.stages" / stage_file.TENSORS
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")


def pipe_record(folder: Path) -> None:
    path = folder / ".out.stages" / RECORD
    path.unlink()
    os.mkfifo(path)


def leave(_: Path) -> None:
    pass


ERRORS = [
    (leave, {"ratio": 0.25}, r"cannot resume .*/out: random\.ratio was 0\.5 and is 0\.25 now$"),
    (leave, {"passes": "random,random"}, "the passes were random and are random,random now$"),
    (leave, {"data": __file__}, "--data was not given before$"),
    (change_source, {}, r"model\.safetensors of the model has changed$"),
    (cut_off_tensors, {}, r"stage\.safetensors is damaged, or was changed$"),
    (change_tensors, {}, r"stage\.safetensors is damaged, or was changed$"),
    (remove_tensors, {}, r"stage\.safetensors is damaged, or was changed$"),
    (cut_off_record, {}, r"fxprune\.json is damaged"),
    (nest_record, {}, r"fxprune\.json is damaged"),
    (change_record, {}, r"fxprune\.json is damaged, or was changed$"),
    (older, {}, r"\.out\.stages was written by another version of fxprune$"),
    (pickled, {}, r"\.out\.stages was written by another version of fxprune$"),
    (other_version, {}, r"the version of fxprune was 0\.0\.1 and is .* now$"),
    (all_passes, {}, r"\.out\.stages is damaged: it covers 7 passes$"),
    (cut_more, {}, "cannot resume .*: the plan names a group 'of nothing'"),
    (cut_others, {}, "cannot resume .*: what the finished passes did gives another model now$"),
    (decide_otherwise, {}, r"\.out\.stages is damaged: KeyError\('run'\)$"),
    (fewer_finished, {}, "cannot resume .*: the passes that ran are none$"),
    (no_generators, {}, r"\.out\.stages is damaged: ValueError"),
    (dangling, {}, r"\.out\.stages is a link, and no run made it$"),
    (no_state, {}, r"\.out\.stages is damaged: TypeError"),
    (link_folder, {}, r"\.out\.stages is a link, and no run made it$"),
    (link_record, {}, r"fxprune\.json is a link or no file, and no run made it$"),
    (link_tensors, {}, r"stage\.safetensors is a link or no file, and no run made it$"),
    (pipe_record, {}, r"fxprune\.json is a link or no file, and no run made it$"),
    (leave, {"dry_run": True}, "--resume has no effect with --dry-run"),
]


@pytest.mark.parametrize(("change", "options", "message"), ERRORS)
def test_what_cannot_be_resumed(
    change: Callable[[Path], None], options: dict[str, Any], message: str, copied: Path
) -> None:
    change(copied)
    before = sorted(path.name for path in copied.iterdir())
    with pytest.raises(RequestError, match=message) as caught:
        again(copied, **options)
    assert "or leave out --resume" in caught.value.hint or "leave out one" in caught.value.hint
    assert sorted(path.name for path in copied.iterdir()) == before


def test_no_stage_is_saved_through_a_link(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_folder(copied)
    before = contents(copied / "elsewhere")
    monkeypatch.setattr(resume, "WORTH", 0)
    said: list[str] = []
    assert kept_after(copied, resume=False, progress=said.append)
    assert f"not saved for --resume: {copied / '.out.stages'} is a link" in said
    assert contents(copied / "elsewhere") == before


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


def kept_after(folder: Path, **options: Any) -> bool:
    """Whether a run that broke off while it wrote left a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run.ModelRun, "save", lambda *_, **__: (_ for _ in ()).throw(Broken))
        with pytest.raises(Broken):
            again(folder, **options)
    return any(folder.glob(".out.stages*"))


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


def not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredState, "to_json", lambda _: {"graph": {"of": lambda: 0}})


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (full_disk, "the disk is full"),
        (little_room, "not saved for --resume: needs 0.0 GB, 0.0 GB are free"),
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


def test_what_a_user_has_in_the_places_of_a_stage_stays(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    monkeypatch.setattr(resume, "WORTH", 0)
    stages, halfway = copied / ".out.stages", copied / ".out.halfway"
    shutil.rmtree(stages)
    for folder in (stages, halfway, copied / ".out.partial-download", copied / ".out.replaced-original"):
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "00000001.safetensors").write_text("mine")
    before = {path: contents(path) for path in copied.iterdir() if path.is_dir()}
    said: list[str] = []
    again(copied, resume=False, progress=said.append)
    assert {path: contents(path) for path in before} == before
    assert (copied / "out").is_dir()
    assert f"not saved for --resume: {stages} was made by something else" in said


def test_what_a_user_added_to_a_stage_stays(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    (copied / ".out.stages" / "notes.txt").touch()
    again(copied)
    assert contents(copied / ".out.stages").keys() == {"notes.txt"}


def test_a_pipe_in_the_places_of_a_stage(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    shutil.rmtree(copied / ".out.stages")
    os.mkfifo(copied / ".out.stages")
    os.mkfifo(copied / ".out.halfway")
    again(copied, resume=False)
    assert (copied / ".out.stages").is_fifo()
    assert (copied / ".out.halfway").is_fifo()
