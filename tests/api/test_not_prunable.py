"""What was asked for and stays whole is said on the screen, with the reason."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fxprune.api.pruning.request import Applied, apply
from fxprune.api.terminal import tables

from ..families.causal_lm import tiny_config


def shown(result: Applied) -> str:
    console = Console(file=io.StringIO(), width=400)
    for part in tables.applied(result):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_heads_with_slopes_stay_and_the_line_of_code_is_named(tmp_path: Path) -> None:
    """A dry run, from the configuration alone, knows it too."""
    tiny_config("bloom").save_pretrained(tmp_path)
    result = apply(tmp_path, "random", ratio=0.5, dry_run=True)
    assert {change.kind for change in result.groups} == {"width"}
    text = shown(result)
    assert "not prunable: transformer.h.0.self_attention:heads" in text
    assert "the model's code computes values along it at transformer transformers/models/bloom/" in text


def report(*reasons: tuple[str, str]) -> Applied:
    return Applied("m", "p", "p", "", (2, 1), (2, 1), (), (), {"magnitude": {"frozen": dict(reasons)}})


def test_one_line_for_each_reason_the_commonest_first() -> None:
    text = shown(report(("a", "one"), ("b", "two"), ("c", "two"), ("d", "three"), ("e", "four"), ("f", "five")))
    lines = [line.strip() for line in text.splitlines() if "not prunable" in line]
    assert lines == [
        "not prunable: b and 1 more: two", "not prunable: a: one", "not prunable: d: three",
        "not prunable: 2 more groups, see --json",
    ]  # fmt: skip


def test_nothing_is_said_when_nothing_is_frozen() -> None:
    assert "not prunable" not in shown(report())
