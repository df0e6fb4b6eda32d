"""Directories that are complete or absent, and the plan and record beside a model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from fxprune.backends.artifact import read_plan, read_record, read_sizes, write_json, write_plan
from fxprune.backends.atomic_directory import atomic_directory, check_target
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.ir.plan import Plan

OLD, NEW, HALF = (json.dumps({"model_type": which}) for which in ("old", "new", "half"))


def model_directory(path: Path, text: str = OLD) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(out: Path, *, force: bool = False) -> None:
    with atomic_directory(out, force=force) as folder:
        (folder / "config.json").write_text(NEW)


def test_a_directory_appears_whole_with_the_parents_it_needs(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with atomic_directory(out, force=False) as folder:
        (folder / "config.json").write_text(NEW)
        (folder / "private").touch(mode=0o600)
        assert not out.exists()
        assert folder.parent == out.parent
    assert names(out) == ["config.json", "private"]
    assert names(out.parent) == ["out"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((out / "private").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    out = model_directory(tmp_path / "out")
    (out / "model-00002-of-00002.safetensors").touch()
    if not exchange:
        monkeypatch.setattr("fxprune.backends.change_places._exchange", lambda *_: False)
    write(out, force=True)
    assert (out / "config.json").read_text() == NEW
    assert names(out) == ["config.json"]
    assert names(tmp_path) == ["out"]


def test_a_second_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model_directory(tmp_path / "out")
    monkeypatch.setattr("fxprune.backends.change_places._exchange", lambda *_: False)
    rename, calls = os.replace, []

    def second_fails(one: Path, other: Path) -> None:
        calls.append(one)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(FxpruneError, match=r"cannot write .*Input/output error"):
        write(out, force=True)
    assert (out / "config.json").read_text() == OLD
    assert names(tmp_path) == ["out"]


FAILURES: dict[str, tuple[BaseException, type[BaseException], str]] = {
    "interrupt": (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    "a failed check": (FxpruneError("logits differ"), FxpruneError, "logits differ"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device"),
        FxpruneError,
        "cannot write .*out: the disk is full",
    ),
    "full disk in safetensors": (
        safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
        FxpruneError,
        "cannot write .*out: the disk is full",
    ),
    "failing disk": (
        OSError(errno.EIO, "Input/output error"),
        FxpruneError,
        "cannot write .*out: .*Input/output error",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: str, existing: bool) -> None:
    raised, expected, message = FAILURES[failure]
    out = model_directory(tmp_path / "out") if existing else tmp_path / "out"

    def work() -> None:
        with atomic_directory(out, force=True) as folder:
            (folder / "config.json").write_text(HALF)
            raise raised

    with pytest.raises(expected, match=message):
        work()
    assert names(tmp_path) == (["out"] if existing else [])
    assert not existing or (out / "config.json").read_text() == OLD


def existing(path: Path) -> Path:
    return model_directory(path / "out")


def a_file(path: Path) -> Path:
    (path / "out").touch()
    return path / "out"


def other_files(path: Path) -> Path:
    (path / "out").mkdir()
    (path / "out" / "thesis.tex").touch()
    return path / "out"


def under_a_file(path: Path) -> Path:
    return a_file(path) / "model"


@pytest.mark.parametrize(
    ("make", "force", "message", "hint"),
    [
        (existing, False, r"out already exists", "--force"),
        (a_file, True, r"out is a file, not a directory", "another --out"),
        (other_files, True, r"thesis.tex belongs to no model", "--force replaces only models"),
        (under_a_file, False, r"out is a file, not a directory", "another --out"),
    ],
)
def test_targets_that_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], force: bool, message: str, hint: str
) -> None:
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=message) as caught, atomic_directory(out, force=force):
        pytest.fail("work was begun")
    assert hint in caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # a test may run as root, who may write anywhere
    with pytest.raises(RequestError, match=f"{tmp_path} is not writable"):
        check_target(tmp_path / "out", force=False)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a place where nobody can write")
def test_a_place_where_nobody_can_write_is_refused_before_any_work() -> None:
    with pytest.raises(RequestError, match="nothing can be written to /proc"):
        check_target(Path("/proc/out"), force=False)


def test_a_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10**9))
    check_target(tmp_path / "out", force=False, needed=10**9)
    with pytest.raises(RequestError, match=r"has 1.0 GB free, but 2.0 GB are needed"):
        check_target(tmp_path / "out", force=False, needed=2 * 10**9)


@pytest.mark.parametrize("inside", [False, True])
def test_the_source_is_not_replaced(tmp_path: Path, inside: bool) -> None:
    out = model_directory(tmp_path / "out")
    source = model_directory(out / "source") if inside else out
    with pytest.raises(RequestError, match="contains the model that is being read"):
        check_target(out, force=True, source=source)


PLAN = Plan(
    slices={
        ("layers.0.weight", 1): np.array([0, 2, 5]),
        ("layers.0.weight", 0): np.array([1]),
        ("a:b", 0): np.arange(4, dtype=np.int32),
    }
)


def test_a_plan_reads_back_and_has_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    write_plan(tmp_path, PLAN)
    first = (tmp_path / "fxprune.plan").read_bytes()
    back = read_plan(tmp_path)
    assert back.keys() == PLAN.slices.keys()
    assert all(np.array_equal(back[key], PLAN.slices[key]) and back[key].dtype == np.int64 for key in back)
    write_plan(tmp_path, Plan(slices=dict(reversed(PLAN.slices.items()))))
    assert (tmp_path / "fxprune.plan").read_bytes() == first


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, r"fxprune.plan does not exist"),
        (b"", r"fxprune.plan is damaged"),
        (b"\x10\0\0\0\0\0\0\0{}", r"fxprune.plan is damaged"),
        ({"weight": np.array([0])}, r"is not a plan: its entry 'weight' is int64 of shape \(1,\)"),
        ({"weight:x": np.array([0])}, r"is not a plan: its entry 'weight:x'"),
        ({"weight:0": np.array([0.0])}, r"is not a plan: its entry 'weight:0' is float64"),
        ({"weight:0": np.array([[0]])}, r"is not a plan: its entry 'weight:0' is int64 of shape \(1, 1\)"),
        ({"weight:0": np.array([2, 1])}, r"the indices of 'weight:0' are empty, negative or not ascending"),
        ({"weight:0": np.array([1, 1])}, r"the indices of 'weight:0' are empty, negative or not ascending"),
        ({"weight:0": np.array([-1, 1])}, r"the indices of 'weight:0' are empty, negative or not ascending"),
        ({"weight:0": np.array([], dtype=np.int64)}, r"the indices of 'weight:0' are empty, negative or not ascending"),
    ],
)
def test_plans_that_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray] | bytes | None, message: str) -> None:
    if isinstance(tensors, bytes):
        (tmp_path / "fxprune.plan").write_bytes(tensors)
    elif tensors is not None:
        save_file(tensors, tmp_path / "fxprune.plan")
    with pytest.raises(RequestError, match=message) as caught:
        read_plan(tmp_path)
    assert caught.value.hint


def test_the_former_name_of_a_plan_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    write_plan(tmp_path, PLAN)
    (tmp_path / "fxprune.plan").rename(tmp_path / "plan.safetensors")
    assert read_plan(tmp_path).keys() == read_plan(tmp_path / "plan.safetensors").keys() == PLAN.slices.keys()
    write_plan(tmp_path, Plan(slices={("other", 0): np.array([0])}))
    assert list(read_plan(tmp_path)) == [("other", 0)]


def test_a_plan_says_how_large_each_dimension_was(tmp_path: Path) -> None:
    measured = PLAN.measured({"layers.0.weight": (3, 8), "a:b": (5,), "other": (9,)})
    write_plan(tmp_path, measured)
    assert read_sizes(tmp_path / "fxprune.plan") == measured.sizes
    assert read_plan(tmp_path).keys() == PLAN.slices.keys()
    write_plan(tmp_path, PLAN)  # as in earlier versions
    assert read_sizes(tmp_path / "fxprune.plan") == {}


@pytest.mark.parametrize("sizes", ["[", "[]", '{"b:0": 3}', '{"a:0": "3"}', '{"a:0": true}', '{"a": 3}'])
def test_sizes_that_are_none_are_refused(tmp_path: Path, sizes: str) -> None:
    save_file({"a:0": np.array([0, 1])}, tmp_path / "fxprune.plan", {"sizes": sizes})
    with pytest.raises(RequestError, match="damaged"):
        read_sizes(tmp_path / "fxprune.plan")


def test_a_truncated_plan_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path, PLAN)
    whole = (tmp_path / "fxprune.plan").read_bytes()
    for length in range(0, len(whole), 16):
        (tmp_path / "fxprune.plan").write_bytes(whole[:length])
        with pytest.raises(RequestError, match="damaged"):
            read_plan(tmp_path)


def test_a_record_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "fxprune.json", {"b": 1, "a": [2]})
    assert read_record(tmp_path) == {"b": 1, "a": [2]}
    assert list(json.loads((tmp_path / "fxprune.json").read_text())) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("{", "is damaged"), ("[]", "is damaged: it is not a JSON object")],
)
def test_records_that_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "fxprune.json").write_text(text)
    with pytest.raises(RequestError, match=f"fxprune.json {message}"):
        read_record(tmp_path)
