"""What benchmarks import of fxprune is there: no test runs most of them, and they would fail when somebody does."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

from ..test_house import ROOT

FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def imported(file: Path) -> list[tuple[str, str]]:
    """Module of fxprune and a name that a file imports from it, wherever in the file."""
    package = ("fxprune", *file.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            found += [(module, one.name) for one in node.names if module.split(".")[0] == "fxprune"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    for module, name in imported(file):
        try:
            there = hasattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("fxprune"):
                raise
            pytest.skip(f"{error.name} is not installed")
        assert there or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"


def test_imports_of_both_forms_are_read() -> None:
    file = ROOT / "benchmarks" / "deployment" / "drafts.py"
    assert ("fxprune.passes.drop.choice", "block_influence") in imported(file)
    assert ("fxprune.benchmarks.deployment.pruned_forms", "prune") in imported(file.with_name("table.py"))
