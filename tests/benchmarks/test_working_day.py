"""The page of a working day: every line has commands, they parse, and of what they print nothing is lost unsaid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import fxprune
from fxprune import cli
from fxprune.api.terminal.arguments import build_parser
from fxprune.benchmarks.working_day import measures
from fxprune.benchmarks.working_day.run import cut, page
from fxprune.benchmarks.working_day.steps import STEPS, TITLES, Step

PAGE = Path(fxprune.__file__).parent / "docs" / "working-day.md"


def test_every_line_is_shown() -> None:
    assert list(TITLES) == list(range(1, 19))
    assert {step.line for step in STEPS} == set(TITLES)
    assert len({step.name for step in STEPS}) == len(STEPS)
    named = {name for step in STEPS for name in (step.prepare, step.measure) if name}
    assert all(callable(getattr(measures, name)) for name in named)


@pytest.mark.parametrize("step", [step for step in STEPS if step.command.startswith("fxprune ")], ids=lambda s: s.name)
def test_the_commands_are_what_they_are_said_to_be(step: Step) -> None:
    words = shlex.split(step.command)[1:]
    parser = build_parser(cli.COMMANDS)
    if step.code == 0 and words != ["--help"]:
        assert parser.parse_args(words).command == words[0]
    elif step.code == 0:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        assert ended.value.code == 0


def test_the_page_shows_what_was_printed_without_seconds() -> None:
    long = "\n".join(f"row {number}" for number in range(40))
    text = page({"1.1": {"shown": f"taylor 2.5 s\n{long}", "code": 0, "cpu": 1.0}, "9.1": {"shown": "x", "cpu": 0.25}})
    assert "$ fxprune trace demo\ntaylor N s\nrow 0\n" in text
    assert "[...]\nrow 36\n" in text
    assert "$ fxprune --help  # 0.2 CPU s\nx\n" in text
    assert [int(number) for number in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)] == list(TITLES)


def test_the_end_of_a_long_output_is_kept() -> None:
    assert list(cut("1\n2\n3\n4\n5\n6\n7", 3)) == ["1", "2", "[...]", "7"]
    assert list(cut("\x1b[1m1\x1b[0m\n2", 3)) == ["1", "2"]


def test_what_stands_on_the_page_is_of_these_commands() -> None:
    shown = re.findall(r"^\$ (fxprune .*?)(?:  # [\d.]+ CPU s)?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown
    assert set(shown) <= {step.command for step in STEPS}
