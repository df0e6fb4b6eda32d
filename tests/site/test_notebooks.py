"""The notebooks run: in this process where that is quick, and as a reader runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..documents import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def cells(name: str) -> list[str]:
    """The code of a notebook."""
    found = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_there_are_two_notebooks_and_a_page_names_them() -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 2
    assert all(f"(notebooks/{name})" in page and cells(name) for name in NOTEBOOKS)


def run(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, source in enumerate(cells(name)):
        exec(compile(source, f"{name}[{number}]", "exec"), names)
    return names


@pytest.mark.usefixtures("one_thread")
def test_the_network_of_the_notebook_is_pruned_and_loaded() -> None:
    names = run("prune-a-cnn.ipynb")
    before, after = names["pruned"].macs
    assert 0.49 < after / before < 0.51
    dense, loaded = names["accuracy"](names["net"]), names["accuracy"](names["loaded"])
    assert dense > 0.8
    assert loaded > dense - 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
def test_the_demo_of_the_notebook_is_pruned_and_measured() -> None:
    names = run("prune-the-demo.ipynb")
    before, after = names["applied"].parameters
    assert 0.79 < after / before < 0.81
    dense, smaller = (row.perplexity.value for row in names["rows"])
    assert dense < smaller < 2 * dense


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_a_kernel(name: str, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="comes with the extra fxprune[docs]")
    nbformat = pytest.importorskip("nbformat", reason="comes with the extra fxprune[docs]")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    errors = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert not errors
    assert any(cell.get("outputs") for cell in notebook.cells)
