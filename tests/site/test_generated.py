"""Generated pages and pictures are those that their scripts make."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from ..documents import ROOT

DOCS = ROOT / "docs"
PAGES = ("operators.md", "reference/passes.md", "reference/options.md", "reference/python.md")
PICTURES = ("llama-layer.svg", "residual-block.svg")


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generate.py"))


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "pictures" / "draw.py"))


def test_all_of_them_are_checked_below(generated: dict[str, Any], drawn: dict[str, Any]) -> None:
    assert set(PAGES) == generated["PAGES"].keys()
    assert set(PICTURES) == drawn["PICTURES"].keys() == {path.name for path in (DOCS / "pictures").glob("*.svg")}


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_current(generated: dict[str, Any], page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8") == generated["PAGES"][page]().rstrip() + "\n", (
        "python docs/generate.py writes it"
    )


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_current(drawn: dict[str, Any], name: str) -> None:
    text = (DOCS / "pictures" / name).read_text(encoding="utf-8")
    assert text == drawn["picture"](drawn["PICTURES"][name]()), "python docs/pictures/draw.py writes it"


def test_the_dark_stripes_of_a_kv_head_are_its_query_heads_keys_values_and_columns() -> None:
    """In the picture as it is committed: 32 rows of ``q_proj``, 16 of keys and of values, 32 columns of ``o_proj``."""
    svg = xml.etree.ElementTree.fromstring((Path(DOCS) / "pictures" / "llama-layer.svg").read_text(encoding="utf-8"))
    dark = [
        node.attrib
        for node in svg.iter("{http://www.w3.org/2000/svg}rect")
        if node.get("fill") == "#d9730d" and node.get("fill-opacity") == "0.75"
    ]
    rows, columns = ([float(rect[side]) / 0.5 for rect in dark] for side in ("height", "width"))
    assert [round(extent) for extent in rows] == [32, 16, 16, 128]
    assert [round(extent) for extent in columns] == [128, 128, 128, 32]
