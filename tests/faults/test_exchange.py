"""What is made at OUT while a run works is never lost, and neither is the run's own result."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxprune.backends import change_places
from fxprune.backends.artifact import write_json
from fxprune.backends.atomic_directory import atomic_directory, check_target
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime import scratch

from ..checkpoints import contents

CONFIG = "config.json"


def model(folder: Path, kind: str) -> Path:
    folder.mkdir()
    write_json(folder / CONFIG, {"model_type": kind})
    return folder


def kind(folder: Path) -> str:
    return (folder / CONFIG).read_text().split('"')[3]


def write(
    out: Path, kind: str, meanwhile: Callable[[], object] = lambda: None, *, force: bool = True, **how: Any
) -> None:
    """A run, and what happens while it works."""
    with atomic_directory(out, force=force, **how) as folder:
        write_json(folder / CONFIG, {"model_type": kind})
        meanwhile()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["one step", "steps"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Linux, and a system without ``renameat2``."""
    if request.param == "steps":
        monkeypatch.setattr(change_places, "_rename", lambda *_: False)
    return str(request.param)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("force", [False, True])
def test_a_directory_that_is_made_meanwhile_stays(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    seen = check_target(out, force=force)
    with pytest.raises(RequestError) as caught:
        write(out, "mine", lambda: (out / "thesis").mkdir(parents=True), force=force, seen=seen)
    assert caught.value.message == f"{out} was made by something else while this run was working"
    assert caught.value.hint == f"nothing is lost: the result of this run is {tmp_path / 'out.fxprune-2'}"
    assert names(out) == ["thesis"]
    assert kind(tmp_path / "out.fxprune-2") == "mine"
    assert names(tmp_path) == ["out", "out.fxprune-2"]


@pytest.mark.usefixtures("system")
def test_a_file_that_is_made_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match="was made by something else"):
        write(out, "mine", lambda: out.write_text("an important file"), force=False)
    assert out.read_text() == "an important file"
    assert kind(tmp_path / "out.fxprune-2") == "mine"


@pytest.mark.usefixtures("system")
def test_even_an_empty_directory_or_a_dangling_link_that_is_made_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match="was made"):
        write(out, "mine", out.mkdir)
    assert names(out) == []
    out.rmdir()
    with pytest.raises(RequestError, match="was made"):
        write(out, "second", lambda: out.symlink_to("nowhere"))
    assert out.is_symlink()
    assert kind(tmp_path / "out.fxprune-2") == "mine"
    assert kind(tmp_path / "out.fxprune-3") == "second"


CHANGES = {
    "a file is added": lambda out: (out / "notes.txt").touch(),
    "a file is changed": lambda out: write_json(out / CONFIG, {"model_type": "changed"}),
    "a file is removed": lambda out: (out / CONFIG).unlink(),
    "a file is replaced by one of the same size and time": lambda out: _replaced(out / CONFIG),
    "another directory takes its place": lambda out: (out.rename(out.with_name("old")), model(out, "other")),
}


def _replaced(path: Path) -> None:
    before = path.stat()
    new = path.with_name("new")
    new.write_text(path.read_text().replace("old", "two"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("change", CHANGES)
def test_an_artifact_that_changes_meanwhile_is_not_replaced(tmp_path: Path, change: str) -> None:
    out = model(tmp_path / "out", "old")
    after: list[dict[str, str]] = []

    def meanwhile() -> None:
        CHANGES[change](out)
        after.append(contents(out))

    with pytest.raises(RequestError, match="is not what it was when this run began"):
        write(out, "mine", meanwhile)
    assert contents(out) == after[0]
    assert kind(tmp_path / "out.fxprune-2") == "mine"


@pytest.mark.usefixtures("system")
def test_an_artifact_that_is_removed_meanwhile_is_replaced(tmp_path: Path) -> None:
    out = model(tmp_path / "out", "old")
    write(out, "new", lambda: shutil.rmtree(out))
    assert kind(out) == "new"
    assert names(tmp_path) == ["out"]


def test_a_change_between_the_look_and_the_step_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model(tmp_path / "out", "old")
    exchange = change_places._exchange

    def late(one: Path, other: Path) -> bool:
        if kind(out) == "old":
            (out / "notes.txt").touch()
        return exchange(one, other)

    monkeypatch.setattr(change_places, "_exchange", late)
    with pytest.raises(RequestError, match="is not what it was"):
        write(out, "mine")
    assert names(out) == [CONFIG, "notes.txt"]
    assert kind(out) == "old"
    assert kind(tmp_path / "out.fxprune-2") == "mine"


def test_what_nobody_needs_is_not_kept_beside(tmp_path: Path) -> None:
    out = tmp_path / ".out.stages"
    with pytest.raises(FxpruneError, match="was made"):
        write(out, "mine", out.mkdir, keep=False)
    assert names(tmp_path) == [".out.stages"]


def _write(out: Path, number: int, force: bool, start: object, results: object) -> None:
    seen = check_target(out, force=force)
    start.wait()  # type: ignore[attr-defined]
    try:
        write(out, f"run{number}", force=force, seen=seen)
        results.put((number, ""))  # type: ignore[attr-defined]
    except RequestError as error:
        results.put((number, error.hint))  # type: ignore[attr-defined]


@pytest.mark.parametrize("force", [False, True])
def test_of_concurrent_runs_one_wins_and_none_loses_its_result(tmp_path: Path, force: bool) -> None:
    context = multiprocessing.get_context("fork")
    out, count = tmp_path / "out", 4
    for number in range(10):
        place = out / str(number)
        start, results = context.Barrier(count), context.Queue()
        runs = [context.Process(target=_write, args=(place, run, force, start, results)) for run in range(count)]
        for run in runs:
            run.start()
        said = dict(results.get(timeout=60) for _ in runs)
        for run in runs:
            run.join()
        winners = [run for run, hint in said.items() if not hint]
        assert len(winners) == 1
        assert kind(place) == f"run{winners[0]}"
        beside = [Path(hint.rpartition(" ")[2]) for hint in said.values() if hint]
        kept = {kind(path) for path in beside}
        assert kept == {f"run{run}" for run in range(count)} - {f"run{winners[0]}"}
        assert set(out.iterdir()) - {out / str(before) for before in range(number)} >= {place, *beside}
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_a_lock_that_another_program_holds_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_places, "PATIENCE", 0.05)
    held = scratch.lock(tmp_path)
    write(tmp_path / "out", "new")
    scratch.unlock(held)
    assert names(tmp_path) == ["out"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(scratch.fcntl, "flock", no_locks)
    model(tmp_path / "out", "old")
    (tmp_path / ".out.partial-fxprune-0123456789abcdef").mkdir()  # perhaps of a run that lives
    write(tmp_path / "out", "new")
    assert names(tmp_path) == [".out.partial-fxprune-0123456789abcdef", "out"]
    assert kind(tmp_path / "out") == "new"
