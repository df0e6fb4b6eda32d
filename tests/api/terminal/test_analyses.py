"""What an analysis prints beside its tables."""

from __future__ import annotations

from typing import Any

import pytest
from rich.text import Text

from fxprune.api.analyzing.next_command import Asked
from fxprune.api.analyzing.result import AnalysisResult
from fxprune.api.terminal.analyses import analysis


def printed(*measured: float) -> str:
    """The lines of an analysis whose budgets measured so much, with a bound of 0.05; of half the model recommended."""
    budgets = [
        {"share": 1 - at / 10, "reached": 100 - 10 * at, "predicted": one, "measured": one}
        for at, one in enumerate(measured, start=1)
    ]
    report: dict[str, Any] = {
        "pass": "wanda{by=search}", "measure": "params", "whole": 100, "unit": "nats per token", "bound": 0.05,
        "groups": [], "parts": [], "budgets": budgets, "recommended": budgets[0], "equal_widths": [],
        "not_measured": {}, "frozen": {},
    }  # fmt: skip
    found = AnalysisResult("model", 100, 100, report, Asked("model"))
    return "\n".join(part.plain for part in analysis(found) if isinstance(part, Text))


@pytest.mark.parametrize(("measured", "told"), [((0.01, 0.02), True), ((0.01, 0.06), False)])
def test_a_model_that_no_cut_changes_is_told_of(measured: tuple[float, ...], told: bool) -> None:
    assert ("no recommendation means anything" in printed(*measured)) is told
