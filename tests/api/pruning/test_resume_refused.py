"""--resume: stages that are damaged or of another run are refused by name, and nothing of a user's is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxprune.api.pruning import resume, stage_file
from fxprune.backends.artifact import RECORD
from fxprune.backends.huggingface import weight_source
from fxprune.ir.errors import RequestError

from ...checkpoints import contents
from .interrupted import (
    again,
    kept_after,
)


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
    (leave, {"calib": __file__}, "--calib was not given before$"),
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
