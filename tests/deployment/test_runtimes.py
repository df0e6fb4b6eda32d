"""Pruned models in runtimes that people deploy: ``make deployment``. By default only the page of the last run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fxprune.benchmarks.deployment.environment import Environment, NotInstalledError
from fxprune.benchmarks.deployment.pruned_forms import PIPELINES, Pruned, prune
from fxprune.benchmarks.deployment.run import RUNTIMES, run
from fxprune.benchmarks.deployment.table import BEGIN, END, PAGE, ROUNDED, read_data, table

LARGE = pytest.mark.skipif("FXPRUNE_LARGE" not in os.environ, reason="installs gigabytes: FXPRUNE_LARGE=1 runs it")
EACH = [pytest.param(name, marks=LARGE if row.get("large") else ()) for name, row in RUNTIMES.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the environments are kept: as the user says, or for this run only."""
    return Path(os.environ.get("FXPRUNE_DEPLOYMENT") or tmp_path_factory.mktemp("deployment")).resolve()


@pytest.fixture(scope="module", params=list(PIPELINES))
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pruned]:
    return request.param, prune("demo", request.param, tmp_path_factory.mktemp("models"))


@pytest.mark.deployment
@pytest.mark.parametrize("runtime", EACH)
def test_a_pruned_model_decodes_what_torch_decodes(runtime: str, pruned: tuple[str, Pruned], folder: Path) -> None:
    (form, model), row = pruned, RUNTIMES[runtime]
    for kind in row["types"] if form in ROUNDED else ["float32"]:
        found = run(runtime, form, kind, model, folder)
        if form in row["refuses"]:
            assert found.outcome == "refused"
            assert re.search(row["refuses"][form], found.message), found
        else:
            assert found.outcome in (("equal",) if kind == "float32" else ("equal", "bounded")), found


@pytest.mark.deployment
def test_a_package_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=r"no-such-package-of-anybody==1 cannot be installed .*\nhint: pip"):
        Environment(tmp_path / "environment", ["no-such-package-of-anybody==1"]).make()
    assert not Environment(tmp_path / "environment", ["no-such-package-of-anybody==1"]).ready()


def test_the_page_has_the_table_of_the_last_run() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == table(read_data()).strip()


def test_the_last_run_came_out_as_the_suite_expects() -> None:
    rows = read_data()["rows"]
    assert {(row["runtime"], row["form"]) for row in rows if row["type"] == "float32"} == {
        (runtime, form) for runtime in RUNTIMES for form in PIPELINES
    }
    for row in rows:
        refusal = RUNTIMES[row["runtime"]]["refuses"].get(row["form"])
        assert (row["outcome"] == "refused") == (refusal is not None), row
        if refusal is not None:
            assert re.search(refusal, row["message"]), row
        else:
            assert row["outcome"] in (("equal",) if row["type"] == "float32" else ("equal", "bounded")), row
