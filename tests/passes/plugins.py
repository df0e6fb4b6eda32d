"""A small package that brings an operator rule, two passes and an exporter: the one that the how-to pages write."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

import fxprune

from ..forks import Forks

ROOT = Path(fxprune.__file__).parent
PAGES = tuple(ROOT / "docs" / f"writing-a-{name}.md" for name in ("rule", "pass", "backend"))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (my_package/\w+\.py)\n")


def files(page: Path) -> dict[str, str]:
    """The files of the package that a page writes: a block of Python that begins with the file's name."""
    blocks = (text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language == "python")
    return {found[1]: text for text in blocks if (found := _FILE.match(text))}


def script(page: Path) -> str:
    """Every other block of Python of a page, one after the other."""
    blocks = (text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language == "python")
    return "\n".join(text for text in blocks if not _FILE.match(text))


def entry_points(page: Path) -> dict[str, dict[str, str]]:
    """Group -> name -> place, of the ``pyproject.toml`` of a page."""
    found: dict[str, dict[str, str]] = {}
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "toml":
            found |= tomllib.loads(text)["project"]["entry-points"]
    return found


def install(
    folder: Path, name: str, points: Mapping[str, Mapping[str, str]], sources: Mapping[str, str], version: str = "0.1"
) -> None:
    """Put a package into a folder as an installer does: its files, and beside them what its metadata says."""
    for place, text in sources.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{n} = {place}\n" for n, place in named.items()) for group, named in points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


def install_pages(folder: Path) -> None:
    """The package of the three pages."""
    points: dict[str, dict[str, str]] = {}
    sources = {"my_package/__init__.py": ""}
    for page in PAGES:
        points |= entry_points(page)
        sources |= files(page)
    install(folder, "my-package", points, sources)


def python(forks: Forks, folder: Path, *arguments: object) -> CompletedProcess[str]:
    """Run Python where the packages of a folder are installed."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return forks.run([sys.executable, *map(str, arguments)], env=environment, cwd=folder)
