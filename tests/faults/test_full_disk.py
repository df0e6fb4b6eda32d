"""A disk that fills, wherever a run is: the old artifact stays whole, nothing half is left, and the error says so."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fxprune import api
from fxprune.api.pruning import resume
from fxprune.api.pruning.score_file import write_scores
from fxprune.backends.huggingface import weight_source
from fxprune.ir.errors import FxpruneError
from fxprune.passes.score_cache import ScoreCache
from fxprune.runtime import scratch

from ..checkpoints import contents, write_checkpoint


class Disk:
    """Counts what is created below a folder, and is full from the nth on."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.count = self.full_at = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in ("open", "os.mkdir"):
            return
        path = str(arguments[0])
        if event == "os.mkdir":
            written = not os.path.isdir(path)  # else it is not made
        else:
            written = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if written and path.startswith(f"{self.folder}/"):
            self.count += 1
            if self.count == self.full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    @contextmanager
    def filling(self, folder: Path, place: int = 0) -> Iterator[None]:
        self.folder, self.count, self.full_at = folder, 0, place
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def disk() -> Disk:
    return Disk()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_checkpoint(folder / "source")
    for name in ("LICENSE", "vocab.json"):
        (folder / "source" / name).touch()
    (folder / "place").mkdir()
    return folder


def prune(folder: Path, seed: int, **how: Any) -> None:
    api.apply(folder / "source", "random", ratio=0.5, seed=seed, out=folder / "place" / "out", force=True, **how)


@pytest.mark.wide
def test_wherever_the_disk_fills_the_old_artifact_stays(
    folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    with disk.filling(folder / "place"):
        prune(folder, 1)
    places, before = disk.count, contents(folder / "place" / "out")
    assert places >= 7
    for place in range(1, places + 1):
        with disk.filling(folder / "place", place), pytest.raises(FxpruneError) as caught:
            prune(folder, 2)
        assert disk.count >= place
        assert caught.value.message == f"cannot write {folder / 'place' / 'out'}: the disk is full"
        assert caught.value.hint == "free some space; no partial files remain"
        assert [path.name for path in (folder / "place").iterdir()] == ["out"]
        assert contents(folder / "place" / "out") == before


def test_a_stage_for_which_there_is_no_room_is_left_out(
    folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    write = resume.write_stage
    said: list[str] = []

    def full(stage: Path, packed: Any) -> None:
        with disk.filling(stage, 1):
            write(stage, packed)

    monkeypatch.setattr(resume, "write_stage", full)
    prune(folder, 2, resume=True, progress=said.append)
    assert [path.name for path in (folder / "place").iterdir()] == ["out"]
    assert any(text.startswith("not saved for --resume") and "the disk is full" in text for text in said)


def test_scores_for_which_there_is_no_room_leave_nothing(tmp_path: Path, disk: Disk) -> None:
    scores = ScoreCache("scores")
    scores.changed = True
    with disk.filling(tmp_path, 1), pytest.raises(FxpruneError) as caught:
        write_scores(tmp_path / "scores", scores)
    assert caught.value.message == f"cannot write {tmp_path / 'scores'}: the disk is full"
    assert not list(tmp_path.iterdir())


def test_a_temporary_directory_without_room_leaves_nothing(
    folder: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    before = contents(folder / "place")
    with disk.filling(tmp_path, 1), pytest.raises(FxpruneError, match="the disk is full"):
        prune(folder, 3)
    assert not list(tmp_path.iterdir())
    assert contents(folder / "place") == before
