"""Pruned models in runtimes that people deploy: ``make deployment``. By default only the page of the last run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from fxprune.benchmarks.deployment.environment import Environment, NotInstalledError
from fxprune.benchmarks.deployment.pruned_forms import PIPELINES, prune, suited
from fxprune.benchmarks.deployment.run import RUNTIMES, run
from fxprune.benchmarks.deployment.table import BEGIN, END, PAGE, ROUNDED, read_data, table

LARGE = pytest.mark.skipif("FXPRUNE_LARGE" not in os.environ, reason="installs gigabytes: FXPRUNE_LARGE=1 runs it")
EACH = [pytest.param(name, marks=LARGE if row.get("large") else ()) for name, row in RUNTIMES.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the environments are kept: as the user says, or for this run only."""
    return Path(os.environ.get("FXPRUNE_DEPLOYMENT") or tmp_path_factory.mktemp("deployment")).resolve()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def as_expected(row: dict[str, Any]) -> bool:
    """Whether a result is equal, or within the bound of its type; or refused for the reason that is known."""
    refusal = RUNTIMES[row["runtime"]]["refuses"].get(row["form"])
    if refusal is not None:
        return row["outcome"] == "refused" and re.search(refusal, row["message"]) is not None
    return row["outcome"] in (("equal",) if row["type"] == "float32" else ("equal", "bounded"))


@pytest.mark.deployment
@pytest.mark.parametrize("form", PIPELINES)
@pytest.mark.parametrize("runtime", EACH)
def test_a_pruned_model_decodes_what_torch_decodes(runtime: str, form: str, models: Path, folder: Path) -> None:
    row = RUNTIMES[runtime]
    source, calib = suited(row, models)
    model = prune(source, form, models / Path(source).name, calib)
    kinds = row["types"] if form in ROUNDED else ["float32"]
    found = [run(runtime, form, kind, model, folder).to_json() for kind in kinds]
    assert [one for one in found if not as_expected(one)] == []


@pytest.mark.deployment
def test_a_package_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=r"no-such-package-of-anybody==1 cannot be installed .*\nhint: pip"):
        Environment(tmp_path / "environment", ["no-such-package-of-anybody==1"]).make()
    assert not Environment(tmp_path / "environment", ["no-such-package-of-anybody==1"]).ready()


@pytest.mark.deployment
def test_an_environment_is_made_without_what_would_break_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, needs in (("wanted", "Requires-Dist: unwanted\n"), ("unwanted", "")):
        with ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            info = f"{name}-1.dist-info"
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{needs}")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    whole = Environment(tmp_path / "environment", ["wanted"], constrained=False)
    whole.make()
    without = Environment(whole.folder, ["wanted"], constrained=False, without=["unwanted", "nowhere"])
    assert whole.ready()
    assert not without.ready()
    assert {path.stem for path in whole.folder.glob("lib/*/site-packages/*wanted.py")} == {"wanted", "unwanted"}
    without.make()
    assert without.ready()
    assert {path.stem for path in whole.folder.glob("lib/*/site-packages/*wanted.py")} == {"wanted"}


def test_the_page_has_the_table_of_the_last_run() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == table(read_data()).strip()


def test_the_last_run_came_out_as_the_suite_expects() -> None:
    rows = read_data()["rows"]
    assert {row["runtime"] for row in rows} <= RUNTIMES.keys()
    assert {row["form"] for row in rows} == PIPELINES.keys()
    assert [row for row in rows if not as_expected(row)] == []
