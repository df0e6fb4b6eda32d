"""Signals that end a program end a run as Ctrl-C does: nothing half is left, and what is said about it is true."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fxprune import cli
from fxprune.api.terminal.signals import Terminated, ended_by_signals
from fxprune.backends.atomic_directory import atomic_directory
from fxprune.ir.errors import FxpruneError
from fxprune.runtime import scratch
from fxprune.runtime.scratch import ScratchDirectory

from ..checkpoints import contents, write_checkpoint
from ..forks import Forks

# A run that waits where the file WAITS is looked for, until a signal comes.
RUN = """
import os, signal, sys, time
from pathlib import Path
from fxprune import cli
from fxprune.backends.huggingface import streamed_weights
from fxprune.runtime.scratch import ScratchDirectory
kind, source, out, ready = sys.argv[1:]
write = streamed_weights.StreamedWeights.write
def waits(self, model, folder, **how):
    write(self, model, folder, **how)
    with ScratchDirectory("fxprune-other-", beside=Path(os.environ["TMPDIR"])):
        Path(ready).touch()
        time.sleep(60)
streamed_weights.StreamedWeights.write = waits
# What runs the tests may ignore them.
signal.signal(signal.SIGHUP, signal.SIG_IGN if kind == "ignored" else signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(cli.main(["apply", source, "--pass", "random", "--ratio", "0.5", "--force", "--out", out]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("signals") / "source")


class Waiting:
    """A run in a process of its own, which has written its weights and waits."""

    def __init__(self, forks: Forks, source: Path, folder: Path, kind: str = "usual") -> None:
        self.folder, self.temporary = folder / "place", folder / "temporary"
        self.folder.mkdir()
        self.temporary.mkdir()
        command = [sys.executable, "-c", RUN, kind, str(source), str(self.folder / "out"), str(folder / "ready")]
        self.errors = (folder / "errors").open("w+")
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with Path(os.devnull).open("r+") as nowhere:
            self.process = forks.popen(command, env=environment, stdin=nowhere, stdout=nowhere, stderr=self.errors)
        until = time.monotonic() + 120
        while not (folder / "ready").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert [path.name[:13] for path in self.folder.iterdir()] == [".out.partial-"]
        assert list(self.temporary.iterdir())

    def end(self, *numbers: int) -> int:
        for number in numbers:
            os.kill(self.process.pid, number)
        return self.process.wait()

    def left(self) -> list[Path]:
        return [*self.folder.iterdir(), *self.temporary.iterdir()]

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()


@pytest.fixture
def waiting(forks: Forks, source: Path, tmp_path: Path) -> Iterator[Callable[..., Waiting]]:
    made: list[Waiting] = []

    def make(*arguments: Any) -> Waiting:
        made.append(Waiting(forks, source, tmp_path, *arguments))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
        one.errors.close()


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        ([signal.SIGTERM], 143, "interrupted by SIGTERM\n"),
        ([signal.SIGHUP], 129, "interrupted by SIGHUP\n"),
        ([signal.SIGINT], 130, "interrupted\n"),
    ],
)
def test_a_signal_leaves_nothing(waiting: Callable[..., Waiting], numbers: list[int], code: int, said: str) -> None:
    run = waiting()
    assert run.end(*numbers) == code
    assert run.left() == []
    *_, told, hint = run.said().splitlines(keepends=True)  # before them what a slow machine tells every 30 seconds
    assert told == said
    assert hint.startswith("hint: nothing was kept to go on from; begin again with --resume, ")
    assert f" --out {run.folder / 'out'}" in hint
    assert hint.endswith(" --resume\n")


class Finalised:
    """Gets a signal while Python removes it, when no exception can be raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_that_comes_in_a_finaliser_is_not_lost() -> None:
    def run() -> None:
        with ended_by_signals():
            Finalised()
            time.sleep(20)

    with pytest.raises(Terminated) as caught:
        run()
    assert caught.value.exit_code == 143


def test_a_signal_that_is_ignored_stays_ignored(waiting: Callable[..., Waiting]) -> None:
    run = waiting("ignored")
    os.kill(run.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert run.left()
    assert run.end(signal.SIGTERM) == 143
    assert run.left() == []


def test_what_a_killed_run_leaves_goes_with_the_next(waiting: Callable[..., Waiting]) -> None:
    run = waiting()
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    assert {path.name.rpartition("-")[0] for path in run.left()} >= {".out.partial-fxprune", "fxprune-other"}
    weights = run.folder / ".fxprune-weights-0123456789abcdef.run"
    weights.mkdir()
    with atomic_directory(run.folder / "out", force=True) as folder:
        (folder / "config.json").touch()
    ScratchDirectory("fxprune-other-", beside=run.temporary).remove()
    assert [path.name for path in run.folder.iterdir()] == ["out"]
    assert not list(run.temporary.glob("fxprune-other-*"))


def test_a_scratch_directory_that_is_used_is_left_alone(tmp_path: Path) -> None:
    with ScratchDirectory("fxprune-", beside=tmp_path) as one, ScratchDirectory("fxprune-", beside=tmp_path) as two:
        assert one != two
        assert one.is_dir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "fxprune-0123456789abcdef",
        "fxprune-mine.run",
        "fxprune-abcdefgh.run",
        "fxprune-0123456789abcdef0.run",
        "fxprune-0123456789ABCDEF.run",
    ],
)
def test_what_only_looks_like_a_leftover_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "fxprune-fedcba9876543210.run").symlink_to("elsewhere")
    ScratchDirectory("fxprune-", beside=tmp_path).remove()
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "fxprune-fedcba9876543210.run", name}
    assert (tmp_path / "elsewhere" / "mine").exists()


def test_handlers_are_there_only_while_a_command_runs() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        with pytest.raises(Terminated) as caught:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)  # while it cleans up
    assert caught.value.exit_code == 143
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.usefixtures("capsys")
def test_a_command_in_another_thread_runs_too() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["passes", "--json"])))
    thread.start()
    thread.join()
    assert codes == [0]


class FewFiles:
    """Inside, this process may open only some more files."""

    def __init__(self, more: int) -> None:
        self.more = more

    def __enter__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        self.opened = []
        # Fill the numbers that are free below the highest one.
        while (number := os.open(os.devnull, os.O_RDONLY)) < highest:
            self.opened.append(number)
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + self.more, self.limits[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        for number in self.opened:
            os.close(number)


@pytest.mark.parametrize("more", range(0, 14))
def test_few_file_descriptors_leave_nothing(tmp_path: Path, more: int) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"model_type": "old"}')
    before = contents(tmp_path)
    held = []

    def work() -> None:
        with atomic_directory(tmp_path / "out", force=True) as folder:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "adapter_config.json").touch()
            while True:
                held.append(os.open(folder / "config.json", os.O_RDWR | os.O_CREAT))

    with FewFiles(more), pytest.raises(FxpruneError) as caught:
        work()
    for number in held:
        os.close(number)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "too many files are open" in caught.value.message or "cannot be looked into" in caught.value.message


def test_what_could_not_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Path] = []

    def fails() -> None:
        with atomic_directory(tmp_path / "out", force=False) as folder:
            left.append(folder)
            (folder / "config.json").touch()
            monkeypatch.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
            raise OSError(5, "Input/output error")

    with pytest.raises(FxpruneError) as caught:
        fails()
    assert caught.value.hint.endswith(f"{left[0]} could not be removed; the next run removes it")
    monkeypatch.undo()
    with atomic_directory(tmp_path / "out", force=False) as folder:
        (folder / "config.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
