"""Finds what ``package.module:name`` names: installed, or in the directory that the user works in.

That directory may be a download, so it is no place where Python looks for modules in general: a ``triton.py`` in it
would run as soon as torch looks for the package of that name. Only what the user names is imported from there, and what
that imports, where nothing of the name is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ..ir.call_text import did_you_mean
from ..ir.errors import RequestError, class_and_first_line

_MACHINERY = (str(Path(importlib.__file__).parent), "<frozen importlib")
"""Where the frames of the import system itself come from."""


TARGET = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_][\w.]*)")
"""How an object of Python is named."""


class _DirectoryFinder(MetaPathFinder):
    """Finds modules of one directory, after all others have been asked: those that were named, and those that a module
    which it has found imports."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._named: set[str] = set()
        self._found: set[str] = set()

    def allow(self, name: str) -> None:
        """A package that the user has named. It may be one that is installed, whose imports are none of ours."""
        self._named.add(name)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 -- part of the protocol
    ) -> ModuleSpec | None:
        """For a package or module of the directory; those inside a package are found by its own path."""
        if path is not None or not (fullname in self._named or _importer() in self._found):
            return None
        spec = PathFinder.find_spec(fullname, [self.directory])
        if spec is not None:
            self._found.add(fullname)
        return spec


def _importer() -> str:
    """The package whose code imports something now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith(_MACHINERY) or frame.f_globals.get("__name__") == __name__
    ):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]


def is_target(text: str) -> bool:
    """Whether MODEL has the form ``package.module:callable``."""
    return TARGET.fullmatch(text) is not None


def directories() -> Iterator[str]:
    """The directories in which something was named in this process."""
    yield from (finder.directory for finder in sys.meta_path if isinstance(finder, _DirectoryFinder))


def named_object(module: str, attribute: str, wanted: str) -> Any:
    """What a module holds under a name.

    Args:
        module: ``package.module``.
        attribute: ``name``, or ``name.of.a.part``.
        wanted: what it has to be, for the hint of an error.

    Raises:
        RequestError: there is no such module, it cannot be imported, or it has no such attribute.
    """
    _allow(module.partition(".")[0])
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the imported code may raise anything
        raise RequestError(
            f"{module!r} cannot be imported: {class_and_first_line(error)}",
            "run fxprune in the directory that holds the package",
        ) from error
    where = getattr(found, "__file__", None)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RequestError(
                f"{module!r} has no {attribute!r}",
                did_you_mean(part, dir(found)) + f"give {wanted}" + (f"; the file is {where}" if where else ""),
            )
        found = getattr(found, part)
    return found


def has_module(module: str) -> bool:
    """Whether there is a module of this name, or the package around it; nothing of it runs."""
    package = module.partition(".")[0]
    if package in sys.modules:
        return True
    _allow(package)
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def is_of_working_directory(module: str) -> bool:
    """Whether a module, or the package around it, is found in the working directory alone; nothing of it runs."""
    package = module.partition(".")[0]
    places = [place for place in sys.path if place not in ("", os.getcwd())]
    return package not in sys.builtin_module_names and PathFinder.find_spec(package, places) is None


def _allow(package: str) -> None:
    """Let a package be found in the working directory, unless it is found elsewhere."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return
    finder = next((one for one in sys.meta_path if getattr(one, "directory", None) == here), None)
    if not isinstance(finder, _DirectoryFinder):
        finder = _DirectoryFinder(here)
        sys.meta_path.append(finder)
    finder.allow(package)
    importlib.invalidate_caches()
