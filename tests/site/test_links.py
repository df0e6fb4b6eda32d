"""Every page is in the site's navigation, and every link of a page leads to a file and a heading that exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..documents import ROOT, documents

DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [*documents(), ROOT / "SECURITY.md"]


def pages_of(nav: Any) -> Iterator[str]:
    """The files of a navigation, nested as it may be."""
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(inner)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", lambda code: "x" * len(code.group()), text)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading)
        name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        found.add(next(n for n in [name, *(f"{name}_{i}" for i in range(1, 99))] if n not in found))
    return found


def broken(page: Path, text: str) -> list[str]:
    """The links of a text that lead nowhere."""
    found = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            found.append(f"{page.relative_to(ROOT).as_posix()}: {link}")
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(pages_of(SITE["nav"]))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_links_lead_to_files_and_headings() -> None:
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) > 150
    assert [link for page in PAGES for link in broken(page, prose(page))] == []


@pytest.mark.parametrize("link", ["gone.md", "start.md#gone", "#gone", "pictures/gone.svg"])
def test_a_broken_link_is_found(link: str) -> None:
    page = DOCS / "index.md"
    assert broken(page, f"[a](start.md#measure-it) [b]({link}) [c](https://example.org)") == [f"docs/index.md: {link}"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert SITE["plugins"] == ["search"]
    assert not {"extra_css", "extra_javascript"} & SITE.keys()


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs comes with the extra fxprune[docs]")
def test_mkdocs_builds_the_site_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    loaded = r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\" >]+)"
    assert not [found for page in pages for found in re.findall(loaded, page.read_text(encoding="utf-8"))]
