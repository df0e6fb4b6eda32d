"""English text from every Python installation: the documentation of the standard library, in four disjoint parts.

The text is read from the source files with :mod:`ast`; no module is imported. The parts are lists of module names, so
that they are the same in every Python version. A paragraph that occurs in several modules is in one part only.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ..ir.errors import FxpruneError, RequestError

TRAIN = "train"

HELD_OUT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "evaluation": ("http", "shutil", "socketserver", "subprocess", "tempfile", "textwrap"),
        "calibration": ("json", "urllib"),
        "recovery": ("configparser", "doctest", "importlib", "inspect", "logging", "optparse", "tarfile", "threading"),
    }
)
"""Part -> its modules. A paragraph that occurs in several parts belongs to the first of them."""

PARTS = (TRAIN, *HELD_OUT)

# Not documentation: test code, packages added by a distribution, packages missing in some installations.
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "lib-dynload"}
_SKIPPED |= {"site-packages", "dist-packages", "__pycache__"}

# A paragraph with a smaller share of letters, spaces and punctuation is a table, a session or a drawing.
_ENGLISH = 0.93
_PUNCTUATION = frozenset(".,'-")

_Docstring = tuple[str, ...]
"""The paragraphs of one docstring, each on one line."""


def text(part: str) -> str:
    """The text of one part: docstrings separated by an empty line, one paragraph per line.

    Args:
        part: ``train``, ``calibration``, ``recovery`` or ``evaluation``.

    Raises:
        RequestError: when there is no such part.
        FxpruneError: when this Python installation has no source of a module of the part.
    """
    if part not in PARTS:
        raise RequestError(f"the built-in text has no part {part!r}", f"use one of {', '.join(PARTS)}")
    return "\n\n".join("\n".join(docstring) for docstring in _part(part))


@cache
def _part(part: str) -> tuple[_Docstring, ...]:
    order = (*HELD_OUT, TRAIN)
    earlier = order[: order.index(part)]
    seen = {paragraph for name in earlier for docstring in _part(name) for paragraph in docstring}
    found = []
    for docstring in _documents(part):
        fresh = tuple(dict.fromkeys(p for p in _paragraphs(docstring) if p not in seen))
        seen.update(fresh)
        if fresh:
            found.append(fresh)
    return tuple(found)


def _paragraphs(docstring: str) -> Iterator[str]:
    """Paragraphs of prose, each on one line without indentation."""
    block: list[str] = []
    for line in (*inspect.cleandoc(docstring).splitlines(), ""):
        if line.strip():
            block.append(line)
            continue
        paragraph = " ".join(" ".join(block).split())
        block = []
        if _is_english(paragraph):
            yield paragraph


def _is_english(paragraph: str) -> bool:
    plain = sum(c.isspace() or (c.isascii() and c.isalpha()) or c in _PUNCTUATION for c in paragraph)
    return " " in paragraph and plain >= _ENGLISH * len(paragraph)


def _documents(part: str) -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    if part in HELD_OUT:
        for module in HELD_OUT[part]:
            yield from _docstrings(_sources(root, module))
        return
    held_out = {module for modules in HELD_OUT.values() for module in modules}
    names = {path.stem if path.suffix == ".py" else path.name for path in root.iterdir()}
    for module in sorted(names - held_out - _SKIPPED):
        if module.isidentifier() and not module.startswith("_sysconfigdata"):
            yield from _docstrings(_files(root, module))
    yield from _topics(root / "pydoc_data" / "topics.py")


def _sources(root: Path, module: str) -> list[Path]:
    files = _files(root, module)
    if not files:
        raise FxpruneError(
            f"the standard module {module!r} has no source under {root}",
            "the built-in text needs the .py files of the standard library; use a full installation of Python",
        )
    return files


def _files(root: Path, module: str) -> list[Path]:
    single = root / f"{module}.py"
    package = (root / module).rglob("*.py")
    files = [path for path in package if not _SKIPPED.intersection(path.relative_to(root).parts)]
    return [*([single] if single.is_file() else []), *sorted(files, key=lambda path: path.as_posix())]


def _docstrings(files: Iterable[Path]) -> Iterator[str]:
    """Docstrings of modules, classes and functions, in the order of the source."""
    for path in files:
        for node in _preorder(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield docstring


def _preorder(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _preorder(child)


def _topics(path: Path) -> Iterator[str]:
    """The chapters of the language reference that ``help()`` prints: ``topics``, a literal from topic to text."""
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from (str(ast.literal_eval(value)) for value in node.value.values)
