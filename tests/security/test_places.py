"""Paths where nothing can be are refused by name, before any work and whatever they are given for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxprune import api
from fxprune.api.places import check_apart, claim
from fxprune.api.request_checks import path_fault
from fxprune.backends.atomic_directory import LONGEST_NAME, PARTIAL
from fxprune.backends.huggingface import weight_source
from fxprune.cli import main
from fxprune.ir.errors import RequestError

from ..checkpoints import contents, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FAULTS = {
    "loop": "leads in a circle",
    "loop/inside": "leads in a circle",
    "~nobody-has-this-name/x": "home of a user",
    "a\0b": "a NUL character",
    "n" * 300: "more than 255 bytes",
    "missing/" + "ü" * 128: "more than 255 bytes",
    "d/" * 3000: "too long for a path",
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_place_where_nothing_can_be(folder: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    calls: list[list[str]] = [
        ["apply", "model", "--pass", "random", "--out", path],
        ["apply", path, "--pass", "random", "--out", "out"],
        ["apply", "model", "--pass", "taylor", "--calib", "model/config.json", "--scores", path, "--out", "out"],
        ["apply", "model", "--plan", path, "--out", "out"],
        ["export", "model", "--out", path],
        ["trace", "model", "--dot", path],
        ["trace", path],
        ["recipe", path],
    ]
    for words in calls:
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("error: "), words
        assert FAULTS[path] in " ".join(said.split()), words
        assert "hint: " in said, words
    with pytest.raises(RequestError):
        api.apply("model", "taylor", calib=path, out="out")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("path", FAULTS)
@pytest.mark.usefixtures("folder")
def test_the_same_of_any_call(path: str) -> None:
    with pytest.raises(RequestError, match=FAULTS[path]):
        claim(Path(path), force=False)
    with pytest.raises(RequestError, match=FAULTS[path]):
        check_apart(reads={}, files={"--scores": path})
    assert FAULTS[path] in path_fault(path)


def test_a_name_that_leaves_no_room_for_what_is_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for give in (lambda at: claim(at, force=False), lambda at: check_apart(reads={}, files={"--scores": at})):
        with pytest.raises(RequestError, match=f"is too long: {LONGEST_NAME + 1} bytes"):
            give(folder / ("n" * (LONGEST_NAME + 1)))
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    out = folder / ("n" * LONGEST_NAME)
    assert len(f"..{out.name}.halfway{PARTIAL}") + 16 == 255
    api.apply("model", "random", ratio=0.5, out=out, resume=True)
    assert out.is_dir()


def test_a_drawing_over_a_model_that_has_a_name(folder: Path) -> None:
    options: dict[str, Any] = {"name": "owner/name", "traced": None, "coupling": None, "parameters": 0}
    before = contents(folder / "model")
    with pytest.raises(RequestError, match=r"--dot .*config\.json would be a file of the model that is read"):
        api.Trace(**options, origin=folder / "model").write_dot(folder / "model" / "config.json")
    assert contents(folder / "model") == before


def test_the_trace_of_the_demo_knows_its_directory() -> None:
    traced = api.trace("demo")
    assert traced.origin is not None
    with pytest.raises(RequestError, match="would be a file of the model that is read"):
        traced.write_dot(traced.origin / "drawn.json")
