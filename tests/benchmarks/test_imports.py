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
    assert [f"{module}.{name}" for module, name in imported(file) if not is_there(module, name)] == []


def is_there(module: str, name: str) -> bool:
    """Whether a module has a name, or is a package with a module of this name."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("fxprune"):
            return False
        pytest.skip(f"{error.name} is not installed")
    inner = hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
    return inner or hasattr(found, name)


def test_a_name_that_is_not_there_is_found() -> None:
    assert is_there("fxprune.ir", "errors")
    assert not is_there("fxprune.ir.errors", "NoSuchError")
    assert not is_there("fxprune.no_such_module", "any")


def test_imports_of_both_forms_are_read() -> None:
    file = ROOT / "benchmarks" / "deployment" / "drafts.py"
    assert ("fxprune.passes.drop.choice", "block_influence") in imported(file)
    assert ("fxprune.benchmarks.deployment.pruned_forms", "prune") in imported(file.with_name("table.py"))
