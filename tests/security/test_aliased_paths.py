"""What a call reads is never what it writes, by whatever name the two are given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fxprune import api
from fxprune.api.places import check_apart, claim
from fxprune.ir.errors import RequestError

from ..checkpoints import contents, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, another one where a result is to be written, and a text."""
    write_checkpoint(tmp_path / "model")
    write_checkpoint(tmp_path / "out", seed=1)
    (tmp_path / "text.txt").write_text("a text to calibrate on")
    return tmp_path


def refused(folder: Path, message: str, **how: Any) -> None:
    before = contents(folder)
    given = {"out": folder / "out", "force": True, "ratio": 0.5, **how}
    with pytest.raises(RequestError, match=message):
        api.apply(given.pop("model", folder / "model"), given.pop("passes", "taylor"), **given)
    assert contents(folder) == before


def test_a_shard_of_the_model_that_is_a_link_into_out(folder: Path) -> None:
    shard = folder / "model" / "model.safetensors"
    shard.unlink()
    shard.symlink_to(folder / "out" / "model.safetensors")
    refused(folder, r"model\.safetensors is a link to .*out/model\.safetensors")


def test_scores_inside_out(folder: Path) -> None:
    refused(folder, r"--scores .*out/scores lies in .*out", scores=folder / "out" / "scores", calib="demo")


def test_scores_inside_an_out_that_is_a_link(folder: Path) -> None:
    (folder / "alias").symlink_to(folder / "out")
    refused(folder, r"--scores .*out/scores lies in .*alias", scores=folder / "out" / "scores", out=folder / "alias")


def test_a_text_that_is_a_link_into_out(folder: Path) -> None:
    (folder / "calib.txt").symlink_to(folder / "out" / "config.json")
    refused(folder, r"--calib .*calib\.txt lies in .*out", calib=folder / "calib.txt")


def test_a_text_to_train_on_inside_out(folder: Path) -> None:
    data = folder / "out" / "merges.txt"
    data.write_text("a text to train on")
    refused(folder, r"--data .*merges\.txt lies in .*out", data=data, passes="taylor,lora")


def test_a_plan_inside_out(folder: Path) -> None:
    shutil.copy(folder / "out" / "model.safetensors", folder / "out" / "plan.safetensors")
    refused(folder, r"--plan .*out.* lies in .*out", plan=folder / "out", passes=(), ratio=None)


def test_a_model_that_is_a_link_into_out(folder: Path) -> None:
    (folder / "alias").symlink_to(folder / "out")
    refused(folder, "out contains the model that is being read", model=folder / "alias")


def test_an_export_over_its_own_model(folder: Path) -> None:
    (folder / "alias").symlink_to(folder / "model")
    before = contents(folder / "model")
    with pytest.raises(RequestError, match="contains the model that is being read"):
        api.export(folder / "model", folder / "alias", force=True)
    assert contents(folder / "model") == before


def test_a_drawing_over_the_configuration(folder: Path) -> None:
    before = contents(folder / "model")
    traced = api.trace(folder / "model")
    with pytest.raises(RequestError, match=r"--dot .*config\.json would be a file of the model that is read"):
        traced.write_dot(folder / "model" / "config.json")
    os.link(folder / "model" / "config.json", folder / "drawing.dot")
    with pytest.raises(RequestError, match=r"MODEL .*config\.json is the file that --dot writes"):
        traced.write_dot(folder / "drawing.dot")
    assert contents(folder / "model") == before


def test_scores_that_are_a_hard_link_to_the_text(folder: Path) -> None:
    os.link(folder / "text.txt", folder / "scores")
    with pytest.raises(RequestError, match=r"--calib .*text\.txt is the file that --scores writes"):
        check_apart(reads={"--calib": folder / "text.txt"}, files={"--scores": folder / "scores"})


def test_scores_inside_the_model(folder: Path) -> None:
    scores = folder / "model" / "scores.safetensors"
    refused(folder, r"--scores .*scores\.safetensors would be a file of the model that is read", scores=scores)
    check_apart(reads={"MODEL": folder / "model"}, files={"--dot": folder / "model" / "drawing.dot"})


def test_two_files_that_are_the_same(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--dot and --scores write the same file"):
        check_apart(reads={}, files={"--scores": tmp_path / "x", "--dot": tmp_path / "." / "x"})


def test_a_directory_with_the_same_inode_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a file system that ignores case, where no path resolves to the other.
    (tmp_path / "out").mkdir()
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "text.txt").touch()
    same = Path.samefile
    monkeypatch.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower() or same(one, other))
    with pytest.raises(RequestError, match="lies in"):
        check_apart(reads={"--calib": tmp_path / "OUT" / "text.txt"}, files={}, out=tmp_path / "out")


def test_paths_that_are_apart(folder: Path) -> None:
    reads = {"--calib": folder / "text.txt", "--data": "owner/dataset", "--plan": None}
    files = {"--scores": folder / "scores.safetensors"}
    seen = claim(folder / "out", force=True, source=folder / "model", reads=reads, files=files)
    assert "config.json" in seen.place
    claim(folder / "model" / "pruned", force=False, source=folder / "model", files=files)
