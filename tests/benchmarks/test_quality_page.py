"""The page of benchmarks/quality.py claims only differences of several standard errors."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.benchmarks.quality_page import ERRORS, difference, search_verdict, smaller
from fxprune.benchmarks.quality_runs import runs


def column(*increases: float) -> list[dict[str, Any]]:
    return [{"losses": [2 + rise], "dense": [2.0]} for rise in increases]


def test_a_difference_is_paired_by_draws() -> None:
    """Draws that are hard for both leave no error."""
    mean, error = difference(column(0.1, 0.5, 0.9), column(0.2, 0.6, 1.0))
    assert mean == pytest.approx(-0.1)
    assert error == pytest.approx(0, abs=1e-9)
    mean, error = difference(column(0.1, 0.2, 0.3), column(0.2, 0.2, 0.5))
    assert (mean, error) == (pytest.approx(-0.1), pytest.approx(0.1 / 3**0.5))
    assert ERRORS * error > -mean
    assert not smaller(column(0.1, 0.2, 0.3), column(0.2, 0.2, 0.5))
    assert smaller(column(0.1, 0.2, 0.3), column(0.2, 0.35, 0.5))


def test_the_verdict_counts_differences() -> None:
    found = [run for run in runs(3) if run.part == "search"]
    rows = {}
    for run in found:
        shown = run.model == found[0].model
        apart = 0.1 if "search" in run.column else 0.3
        rows[run.key] = column(apart if shown else 0.2 + 0.1 * run.seed * (apart - 0.2))[0]
    cells = {(run.model, run.target) for run in found}
    text = search_verdict(rows, 3)
    assert f"in 2 of {len(cells)} rows; not shown for " in text
    assert all(f"{model} at {target}" in text for model, target in cells if model != found[0].model)
