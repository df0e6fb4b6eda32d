"""The benchmark of known models: its rows, its page, and what the page claims."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxprune.benchmarks.known_models import comparisons, table
from fxprune.benchmarks.known_models.comparisons import (
    BETTER,
    COMPARED,
    ERRORS,
    NEITHER,
    WORSE,
    claim,
    comparison,
    difference,
)
from fxprune.benchmarks.known_models.page import TITLE, option_run, over_texts, section, section_of, with_section
from fxprune.benchmarks.known_models.rows_file import read_rows
from fxprune.benchmarks.known_models.runs import (
    ABLATIONS,
    CHOICES,
    CHOSEN,
    DENSE,
    DRAWS,
    EVALUATION,
    KEPT,
    METHODS,
    PROMPTS,
    TEXTS,
    VALIDATION,
    OwnCode,
    Run,
    runs,
)
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES

MODEL = "smollm2-135m"
ROOT = Path(table.__file__).parents[2]
MEASURED = read_rows(Path(table.__file__).with_name("rows.json"))


def test_the_pipelines_can_be_run() -> None:
    options = sum(map(len, CHOICES.values()))
    for split, more in ((EVALUATION, len(ABLATIONS)), (VALIDATION, options)):
        found = list(runs("m", split))
        assert len({run.key for run in found}) == len(found) == 1 + DRAWS * len(KEPT) * len(METHODS) + more
        for run in found:
            assert Run.of(run.key) == run
            if run.method != DENSE and run.own_code is None:
                assert parse_pipeline(run.pipeline, PASSES)


def test_the_same_pipeline_is_measured_once() -> None:
    """Under the names of two choices, on one draw of one split; not on another."""
    one = Run("m", "damping of the refit: auto", 0.8, split=VALIDATION)
    two = Run("m", "calibration windows: 128", 0.8, split=VALIDATION)
    assert one.same(two)
    assert not one.same(Run("m", "calibration windows: 32", 0.8, split=VALIDATION))
    assert not one.same(Run("m", two.method, 0.8))
    assert not one.same(Run("m", DENSE, split=VALIDATION))


def test_all_that_is_compared_is_measured() -> None:
    assert set(CHOSEN) == set(CHOICES)
    assert all(CHOSEN[name] in options for name, options in CHOICES.items())
    for compared in COMPARED:
        assert {compared.method, compared.other} <= {*METHODS, *ABLATIONS}, compared
    peers = {name for name, method in METHODS.items() if isinstance(method, OwnCode)}
    assert all(METHODS[name] == CHOICES[name][CHOSEN[name]] for name in peers)
    assert len(peers) == 3


@pytest.mark.parametrize("name", CHOICES)
def test_options_are_chosen_on_validation_text(name: str) -> None:
    """Peers have their best option; for ours, no other is shown to be better than the one that all rows have."""
    rows = {option: MEASURED.get(option_run(MODEL, name, option).key) for option in CHOICES[name]}
    chosen = rows[CHOSEN[name]]
    text = section(MEASURED, MODEL)
    assert (chosen is None) == (f"| {name} | {CHOSEN[name]} |" not in text)
    for option, row in rows.items():
        if row is not None and chosen is not None:
            mean, error = over_texts(row, chosen)
            assert mean >= (0 if name in METHODS else -ERRORS * error), option


def test_a_row_of_a_peer_wants_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --code it is left out with a line; no process is begun for it."""
    monkeypatch.setattr(table, "measured", lambda *_: json.dumps(row(1)))
    rows = tmp_path / "rows.json"
    given = ["table", "--models", "m", "--text", "t", "--rows", str(rows), "--methods", "FLAP's code", "paper"]
    monkeypatch.setattr("sys.argv", [*given, "--kept", "0.8"])
    assert table.main() == 0
    assert {key.split("|")[1] for key in json.loads(rows.read_text())} == {DENSE, "paper"}
    assert "left out: give --code, a folder with FLAP" in capsys.readouterr().err


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
    assert f"3 of {len(list(runs('m')))} rows" in text
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


@pytest.mark.parametrize(
    ("mean", "error", "expected"),
    [(-0.3, 0.1, BETTER), (-0.2, 0.1, NEITHER), (0.1, 0.1, NEITHER), (0.2, 0.1, NEITHER), (0.3, 0.1, WORSE)],
)
def test_every_claim_is_a_difference(monkeypatch: pytest.MonkeyPatch, mean: float, error: float, expected: str) -> None:
    """With another difference the table says something else, and nothing else of the section claims anything."""
    monkeypatch.setattr(comparisons, "difference", lambda *_: (mean, error))
    assert claim([row(1)], [row(2)], TEXTS[0]) == expected
    rows = {Run("m", DENSE).key: row(0)}
    rows |= {Run("m", method, 0.8).key: row(number) for number, method in enumerate((*METHODS, *ABLATIONS), 1)}
    text = section(rows, "m")
    claims = [line for line in text.splitlines() if any(f"| {word} |" in line for word in (BETTER, WORSE, NEITHER))]
    assert len(claims) == len(COMPARED)
    assert all(f"| {expected} |" in line for line in claims)
    rest = "\n".join(line for line in text.splitlines() if line not in claims)
    said = re.findall(r"[^.]*\b(?:better|worse|beats|wins)\b[^.]*", rest)
    assert all("standard errors" in sentence or "unless another" in sentence for sentence in said), said


def test_a_comparison_names_the_texts_and_the_target() -> None:
    dense, one = row(1), row(1, shift=0.4)
    other = row(1, shift=0.8)
    other["losses"][TEXTS[2]] = row(1, shift=0.2)["losses"][TEXTS[2]]
    line = comparison(comparisons.Compared("best", "paper", 0.6), [one], [other], [dense], 0.8)
    assert f"{BETTER}: {TEXTS[0]}, {TEXTS[1]}; {WORSE}: {TEXTS[2]}" in line
    assert "0.50 / 0.50 / 2.00" in line
    assert f"0.6: missed on {TEXTS[2]}" in line


def test_the_page_shows_the_rows() -> None:
    """All tables of the section stand in the page as they come from the measured rows."""
    page = section_of((ROOT / "docs" / "quality.md").read_text(encoding="utf-8"))
    fresh = section(MEASURED, MODEL, read_rows(Path(table.__file__).with_name("recovered.json")))
    tables = [[line for line in text.splitlines() if line.startswith("|")] for text in (page, fresh)]
    assert tables[0] == tables[1]
    dense = MEASURED[Run(MODEL, DENSE).key]
    assert f"dense {math.exp(np.mean(dense['losses'][TEXTS[0]])):.2f}" in page
