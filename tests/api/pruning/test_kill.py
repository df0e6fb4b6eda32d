"""Complete or absent: whatever moment a run is killed at, OUT is the old artifact or the new one, whole."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fxprune import api
from fxprune.backends import digests
from fxprune.backends.atomic_directory import PARTIAL, atomic_directory, clear_leftovers
from fxprune.backends.change_places import REPLACED
from fxprune.backends.huggingface import direct_file, weight_source
from fxprune.backends.huggingface.streamed_weights import StreamedWeights
from fxprune.ir.errors import FxpruneError

from ...checkpoints import contents, write_checkpoint
from ...forks import Forks

# Imports and traces once, and forks a process for every run, which is killed from outside after a while, or by itself
# at its nth access to a file or directory beside OUT. The check in a fresh process is left out unless it is asked for.
RUNS = """
import contextlib, json, os, signal, sys, threading, time
import torch
torch.set_num_threads(1)
from fxprune.api.pruning import request
from fxprune.backends import change_places
from fxprune.backends.huggingface import save, weight_source
from fxprune.tests.traces import shared_traces

def run(job, pipe):
    count = 0
    def watch(event, arguments):
        nonlocal count
        beside = any(job["out"] in str(a) or ".out." in str(a) for a in arguments)
        if beside and event.startswith(("open", "os.", "shutil.")):
            count += 1
            if count == job["at"]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    verify = weight_source.verify_written
    def checked(written, source, fresh):
        if job["check"]:
            verify(written, source, fresh)
        return {"the same": "in every record"}
    weight_source.verify_written = checked
    if not job["check"]:
        save.FreshProcess = contextlib.nullcontext
    if not job["exchange"]:
        change_places._exchange = lambda one, other: False
    request.apply(job["source"], "random", ratio=0.5, seed=job["seed"], out=job["out"], force=True)
    os.write(pipe, str(count).encode())

shared = shared_traces()
shared.__enter__()
request.apply(sys.argv[1], "random", ratio=0.5, dry_run=True)  # imports and traces what every run does
for line in sys.stdin:
    job = json.loads(line)
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            run(job, writer)
        finally:
            os._exit(0)
    os.close(writer)
    if job["after"] is not None:
        time.sleep(job["after"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    counted = os.read(reader, 20).decode()
    os.close(reader)
    found = {"killed": os.WIFSIGNALED(status), "events": int(counted or 0), "seconds": time.monotonic() - start}
    print(json.dumps(found), flush=True)
"""


class Runs:
    """Runs that may be killed, over one OUT."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.source = write_checkpoint(folder / "source", shard_size="20kB")
        self.folder = folder / "place"
        self.folder.mkdir()
        self.out = self.folder / "out"
        command = [sys.executable, "-c", RUNS, str(self.source)]
        with Path(os.devnull).open("w") as nowhere:
            self.process = forks.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=nowhere)
        self.whole: dict[int, dict[str, str]] = {}
        for seed in (1, 2):
            self.last = self.run(seed)
            assert self.last["events"] > 20
            self.whole[seed] = contents(self.out)

    def run(self, seed: int, **how: Any) -> dict[str, Any]:
        job = {"source": str(self.source), "out": str(self.out), "seed": seed}
        job |= {"at": None, "after": None, "check": False, "exchange": True} | how
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def kill(self, number: int, **how: Any) -> bool:
        """One run that is killed; every third time there is no OUT before. Whether it was killed in time."""
        if number % 3 == 2:
            shutil.rmtree(self.out, ignore_errors=True)
        before = contents(self.out) if self.out.exists() else None
        seed = 2 if before == self.whole[1] else 1
        killed = bool(self.run(seed, **how)["killed"])
        if not how.get("exchange", True):
            clear_leftovers(self.out)
        after = contents(self.out) if self.out.exists() else None
        assert after in (before, self.whole[seed]), how
        assert killed or after == self.whole[seed]
        return killed

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("runs"), forks)
    yield made
    made.close()
    assert made.process.returncode == 0


def at_random(runs: Runs, count: int, *, checked_every: int) -> None:
    dice = random.Random(0)
    killed = 0
    for number in range(count):
        if number % 2:
            how: dict[str, Any] = {"at": dice.randint(1, runs.last["events"])}
        else:
            how = {"after": dice.uniform(0, 1.1 * runs.last["seconds"])}
        killed += runs.kill(number, **how, check=number % checked_every == checked_every - 1)
    assert killed > count / 2
    runs.run(1)
    assert [path.name for path in runs.folder.iterdir()] == ["out"], "the next run cleans up"
    assert contents(runs.out) == runs.whole[1]


@pytest.mark.wide
def test_killed_at_random_moments(runs: Runs) -> None:
    at_random(runs, 8, checked_every=1000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_200_random_moments(runs: Runs) -> None:
    at_random(runs, 200, checked_every=20)


@pytest.mark.wide
def test_killed_while_directories_change_places(runs: Runs) -> None:
    last = runs.last["events"]
    for number, back in enumerate(range(1, 30, 6)):
        runs.kill(number, at=last - back)
    for number, back in enumerate(range(1, 30, 6)):
        runs.kill(number, at=last - back, exchange=False)


def test_a_run_that_lives_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out, force=False) as one:
        (one / "mine").write_text("1")
        with atomic_directory(tmp_path / "other", force=False):
            clear_leftovers(out)
        assert (one / "mine").is_file()
    assert (out / "mine").is_file()


DIGITS = "0123456789abcdef"


def test_leftovers_of_other_artifacts_are_left_alone(tmp_path: Path) -> None:
    for name in (f".out2{PARTIAL}{DIGITS}", f"out{PARTIAL}{DIGITS}", f".out{PARTIAL}{DIGITS}"):
        (tmp_path / name).mkdir()
    clear_leftovers(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".out2{PARTIAL}0123456789abcdef",
        f"out{PARTIAL}0123456789abcdef",
    ]


def test_an_artifact_that_was_moved_aside_comes_back_unless_there_is_another(tmp_path: Path) -> None:
    aside = tmp_path / f".out{REPLACED}{DIGITS}"
    for _ in range(2):
        aside.mkdir()
        (aside / "config.json").write_text("{}")
        clear_leftovers(tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.wide
@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system")
def test_an_out_on_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source")
    place = Path("/dev/shm") / f"fxprune-test-{os.getpid()}"
    place.mkdir()
    try:
        assert place.stat().st_dev != tmp_path.stat().st_dev
        for seed in (1, 2):
            api.apply(source, "random", ratio=0.5, seed=seed, out=place / "out", force=True)
        assert [path.name for path in place.iterdir()] == ["out"]
        api.apply(source, "random", ratio=0.5, seed=2, out=tmp_path / "out")
        assert contents(place / "out") == contents(tmp_path / "out")
    finally:
        shutil.rmtree(place)


def test_a_file_that_cannot_grow_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source")
    api.apply(source, "random", ratio=0.5, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    write = StreamedWeights.write

    def limited(self: Any, *arguments: Any, **how: Any) -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            return write(self, *arguments, **how)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(StreamedWeights, "write", limited)
    with pytest.raises(FxpruneError) as caught:
        api.apply(source, "random", ratio=0.25, out=tmp_path / "out", force=True)
    assert os.strerror(errno.EFBIG) in caught.value.message
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_disk_that_fills_midway_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source")
    api.apply(source, "random", ratio=0.5, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    left = [3]

    def full(path: Path) -> str:
        left[0] -= path.parent != source
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ""

    monkeypatch.setattr(digests, "sha256", full)
    with pytest.raises(FxpruneError) as caught:
        api.apply(source, "random", ratio=0.25, out=tmp_path / "out", force=True)
    assert caught.value.message == f"cannot write {tmp_path / 'out'}: the disk is full"
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_disk_that_fills_within_the_weights_leaves_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source")
    api.apply(source, "random", ratio=0.5, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    write, left, seen = direct_file._File.write, [5], []

    def full(*arguments: Any) -> None:
        left[0] -= 1
        if not left[0]:
            seen.extend(path.stat().st_size for path in tmp_path.glob(f".out{PARTIAL}*/*.safetensors"))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments)

    monkeypatch.setattr(direct_file, "WRITE_BLOCK", 1 << 12)
    monkeypatch.setattr(direct_file._File, "write", full)
    with pytest.raises(FxpruneError) as caught:
        api.apply(source, "random", ratio=0.25, out=tmp_path / "out", force=True)
    assert caught.value.message == f"cannot write {tmp_path / 'out'}: the disk is full"
    assert len(seen) == 1
    assert seen[0] > 0
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
