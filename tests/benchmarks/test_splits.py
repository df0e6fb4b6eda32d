"""No benchmark chooses options on text that it calibrates on, trains on or measures."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from fxprune.benchmarks import splits
from fxprune.benchmarks.splits import DECLARED

BENCHMARKS = Path(splits.__file__).parent
FILES = ("recover", "calib", "eval")
LENGTH, EACH = 900_000, 100
"""Characters of every file; neighbours that are the same one. All splits begin and end between two different ones."""


def test_all_benchmarks_that_choose_have_declared_their_splits() -> None:
    chooses = re.compile(r"^(CHOSEN = |TRIALS = |def chosen\(rows)", re.MULTILINE)
    found = {
        str(path.relative_to(BENCHMARKS))
        for path in BENCHMARKS.rglob("*.py")
        if chooses.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(DECLARED)


@pytest.mark.parametrize("benchmark", DECLARED)
def test_no_character_serves_two_uses(tmp_path: Path, benchmark: str) -> None:
    """Every character of every file is another one, so that what two uses share would show."""
    declared = DECLARED[benchmark]
    assert {"validation", "evaluation"} < set(declared.uses)
    for text in declared.texts:
        for at, part in enumerate(FILES):
            first = 0x20000 + at * LENGTH // EACH
            content = "".join(chr(first + i) * EACH for i in range(LENGTH // EACH))
            (tmp_path / f"{text}-{part}.txt").write_text(content, encoding="utf-8")
        used = {use: set(read(tmp_path, text)) for use, read in declared.uses.items()}
        assert all(used.values())
        for one, other in itertools.combinations(used, 2):
            assert not used[one] & used[other], (one, other)
