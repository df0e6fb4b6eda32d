"""The benchmark of known models: nothing is chosen on what is measured, and errors are paired."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxprune.benchmarks.known_models.page import TITLE, difference, section, section_of, with_section
from fxprune.benchmarks.known_models.runs import (
    CALIBRATION,
    EVALUATION,
    KEPT,
    METHODS,
    PROMPTS,
    SPLITS,
    TEXTS,
    VALIDATION,
    Run,
    characters,
    runs,
)
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES


def test_no_character_serves_two_uses(tmp_path: Path) -> None:
    """Every text has files in which each character is another, so that what two uses share would show."""
    assert set(SPLITS) == {CALIBRATION, VALIDATION, EVALUATION}
    for text in TEXTS:
        for at, part in enumerate(("calib", "eval")):
            content = "".join(chr(0x20000 + at * 500_000 + i) for i in range(401_000))
            (tmp_path / f"{text}-{part}.txt").write_text(content, encoding="utf-8")
        used = {use: set(characters(tmp_path, text, use)) for use in SPLITS}
        assert all(used.values())
        for one, other in itertools.combinations(SPLITS, 2):
            assert not used[one] & used[other], (one, other)


def test_the_pipelines_can_be_run() -> None:
    for split in (EVALUATION, VALIDATION):
        found = list(runs("m", split))
        assert len({run.key for run in found}) == len(found) == 1 + 3 * len(KEPT) * len(METHODS)
        for run in found:
            assert Run.of(run.key) == run
            if run.method != "dense":
                assert parse_pipeline(run.pipeline, PASSES)


def row(seed: int, shift: float = 0.0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    losses = {text: (3 + shift + draw.normal(size=40)).tolist() for text in TEXTS}
    return {
        "kept": 0.8, "losses": losses, "seconds": 12.0, "peak_gb": 2.0, "date": "2026-11-30",
        "answers": [f"answer | {number}" for number in range(len(PROMPTS))],
    }  # fmt: skip


def test_a_difference_is_paired() -> None:
    """Windows that are hard for both leave no error; noise of one draw leaves that of its mean."""
    one, two = row(1), row(1, shift=0.5)
    mean, error = difference([two], [one], "wikitext2")
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(0, abs=1e-9)
    rows, others = [row(1), row(2), row(3)], [row(4), row(5), row(6)]
    apart = np.array([[a["losses"]["wikitext2"], b["losses"]["wikitext2"]] for a, b in zip(rows, others, strict=True)])
    apart = apart[:, 0] - apart[:, 1]
    expected = apart.mean(0).var(ddof=1) / 40 + apart.mean(1).var(ddof=1) / 3
    mean, error = difference(rows, others, "wikitext2")
    assert (mean, error) == (pytest.approx(apart.mean()), pytest.approx(np.sqrt(expected)))


def test_the_section_says_what_was_measured() -> None:
    rows = {Run("m", "dense").key: row(0)}
    rows |= {Run("m", "best", 0.8, seed).key: row(seed) for seed in (0, 1)}
    text = section(rows, "m")
    assert f"3 of {1 + 3 * len(KEPT) * len(METHODS)} rows" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| 0.8 | best |")]
    assert line.split("|")[3].strip() == "2"
    assert "answer \\| 3" in text
    page = "# Quality\n\nfirst\n\n## Last\n\nend\n"
    written = with_section(page, text)
    assert written.startswith(page.rstrip("\n"))
    assert section_of(written) == text
    assert with_section(written, text) == written
    assert section_of(page) == ""
    assert TITLE in section_of(with_section(page, text))
