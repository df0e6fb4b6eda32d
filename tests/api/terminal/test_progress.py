"""What is told on stderr while a command works."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest

from fxprune import cli
from fxprune.api.terminal import progress_display
from fxprune.api.terminal.progress_display import Loudness, shown
from fxprune.ir.errors import RequestError
from fxprune.runtime.reporting import counted, counting


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for bars and lines."""
    monkeypatch.setattr(progress_display, "SHORT", 0.0)
    monkeypatch.setattr(progress_display, "LINE_EVERY", 0.05)


def work(loudness: Loudness, log: str | None = None) -> None:
    """A step whose work takes a while."""
    with shown(loudness, log) as progress:
        progress("tracing [b]")
        time.sleep(0.11)
        progress("lora (1 of 1)")
        with counting("steps", 4) as advance:
            advance(loss=2.51)
            time.sleep(0.2)


def test_without_a_terminal_there_is_a_line_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    work(Loudness.USUAL)
    out, told = capsys.readouterr()
    assert out == ""
    assert re.search(r"^lora \(1 of 1\): 1 of 4 steps, loss 2\.51, \d+ s left$", told, re.M)
    assert "\x1b" not in told


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    work(Loudness.QUIET)
    assert capsys.readouterr() == ("", "")


def test_verbose_tells_every_step_and_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    work(Loudness.VERBOSE)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "tracing [b]"
    assert any(re.fullmatch(r"tracing \[b\]: 0\.\d s", line) for line in told)
    assert "lora (1 of 1)" in told


def test_a_log_has_every_step_with_the_time_and_is_appended_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    work(Loudness.QUIET, str(log))
    first, second, *_ = log.read_text(encoding="utf-8").splitlines()
    assert first == "before"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d tracing \[b\]", second)
    assert capsys.readouterr().err == ""


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--log-file .*: Is a directory"), shown(Loudness.USUAL, str(tmp_path)):
        pass


def test_on_a_terminal_there_is_a_bar_for_long_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown(Loudness.USUAL) as progress:
        progress("obs (1 of 2)")
        for number in counted(range(4), "layers"):
            time.sleep(0.3 if number == 1 else 0)
    told = capsys.readouterr().err
    assert "━" in told
    assert re.search(r"1 of 4 layers.* obs \(1 of 2\)", told)


def interrupted(_: object) -> int:
    raise KeyboardInterrupt


def said_after(call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that is interrupted; no other word of it."""
    monkeypatch.setattr(cli, f"_{call[0]}", interrupted)
    monkeypatch.setitem(cli.COMMANDS, call[0], interrupted)
    assert cli.main(call) == cli.INTERRUPTED
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "interrupted"
    assert len(rest) <= 1
    return rest[0] if rest else ""


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["apply", "demo", "--pass", "taylor{ratio=0.2},lora", "--out", str(tmp_path / "my out")]
    again = f"fxprune apply demo --pass 'taylor{{ratio=0.2}},lora' --out '{tmp_path}/my out' --resume"
    assert said_after(call, monkeypatch, capsys) == (
        "hint: nothing was kept to go on from; begin again with --resume, which keeps every finished pass: " + again
    )
    resumed = [*call, "--resume"]
    assert said_after(resumed, monkeypatch, capsys) == f"hint: no pass was finished; begin again with: {again}"
    (tmp_path / ".my out.stages").mkdir()
    for asked in (call, resumed):
        assert said_after(asked, monkeypatch, capsys) == f"hint: go on with: {again}"


def test_an_interrupted_demo_says_that_a_part_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["demo", "--out", str(tmp_path)]
    begin = f"begin again with: fxprune demo --out {tmp_path} --force"
    assert said_after(call, monkeypatch, capsys) == f"hint: what {tmp_path} holds is not all; {begin}"
    assert said_after([*call, "--force"], monkeypatch, capsys) == f"hint: nothing was written to go on from; {begin}"


@pytest.mark.parametrize(
    "call",
    [
        ["apply", "demo", "--pass", "taylor", "--target", "params=0.9,0.8", "--out", "sizes/{params}"],
        ["apply", "package.module:build", "--pass", "taylor{ratio=0.2}", "--out", "OUT"],
        ["apply", "demo", "--pass", "taylor{ratio=0.2}", "--dry-run"],
        ["analyze", "demo"],
        ["export", "demo", "--out", "my onnx"],
        ["eval", "demo"],
        ["bench", "demo"],
        ["demo", "--out", "OUT"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_continued_says_how_to_begin_again(
    call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shlex.join(["fxprune", *call])
    assert said_after(call, monkeypatch, capsys) == (
        f"hint: nothing was written to go on from; begin again with: {again}"
    )


def test_interrupted_sizes_say_which_are_complete_and_a_command_that_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["apply", "demo", "--pass", "taylor", "--target", "params=0.9,0.8", "--out", f"{tmp_path}/{{params}}"]
    (tmp_path / "0.9").mkdir()
    (tmp_path / "0.8").mkdir()
    (tmp_path / "0.9" / "fxprune.json").write_text("{}")
    forced = [*call, "--force"]
    for asked in (call, forced):
        assert said_after(asked, monkeypatch, capsys) == (
            f"hint: complete: {tmp_path}/0.9; to make the other sizes, make all again with: "
            f"{shlex.join(['fxprune', *forced])}"
        )
    odd = [*call[:5], "params=0.9,0.9", *call[6:]]
    assert "nothing was written to go on from" in said_after(odd, monkeypatch, capsys)


def test_a_command_of_a_moment_only_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert said_after(["passes"], monkeypatch, capsys) == ""
