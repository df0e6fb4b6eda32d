"""docs/security.md names its tests: they exist, and no row goes without one."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from ..documents import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py::[^`]*)`", PAGE)))

HEAD = "| threat | what fxprune does | the test |"


@functools.cache
def functions(file: str) -> frozenset[str]:
    """The test functions of a file."""
    path = ROOT / "tests" / file
    if not path.is_file():
        return frozenset()
    defined = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(item.name for item in defined if isinstance(item, ast.FunctionDef))


def rows(page: str) -> Iterator[str]:
    """The rows of the tables of threats."""
    inside = False
    for line in page.splitlines():
        inside = line.startswith("|") and (inside or line == HEAD)
        if inside and line != HEAD and not line.startswith("|---"):
            yield line


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_the_page_names_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert function.startswith("test_")
    assert function in functions(file)


def test_every_row_has_a_test() -> None:
    found = list(rows(PAGE))
    assert len(found) > 30
    assert [row for row in found if "::test_" not in row.split("|")[3]] == []
    assert [row for row in found if row.count("|") != 4] == []


def test_a_row_without_a_test_is_seen() -> None:
    page = f"{HEAD}\n|---|---|---|\n| a | b | `x.py::test_y` |\n| c | d | |\n\n| no | threat | here |\n"
    assert list(rows(page)) == ["| a | b | `x.py::test_y` |", "| c | d | |"]
    assert functions("security/test_page.py") >= {"test_a_row_without_a_test_is_seen"}
    assert functions("security/no_such_file.py") == set()
