"""A call on every rank: its processes connected, and what they were given compared, before any work."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..runtime.ranks import Ranks, processes
from ..tracer.model import ModelSource
from .progress import silent
from .request_checks import is_path

LIBRARIES = ("fxprune", "torch", "transformers")

HEAD = 1 << 20
"""Bytes of a file that are compared, with its size: the header of a safetensors file lies within them."""

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def on_every_rank(call: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Give a call the ranks that torchrun started, as its argument ``ranks``; rank 0 alone shows progress.

    The processes are connected before the call begins and as long as it runs. An error in one of them ends all.

    Args:
        call: takes ``ranks`` and ``progress`` by name. All processes make it with equal arguments.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with processes() as ranks:
            if ranks.count > 1:
                given: Mapping[str, Any] = signature.bind(*args, **kwargs).arguments
                ranks.agree(_versions() | {name: _shown(value) for name, value in given.items() if name != "progress"})
                kwargs["ranks"] = ranks
                if not ranks.first:
                    kwargs["progress"] = silent
            return call(*args, **kwargs)

    return run


def agree_on_files(ranks: Ranks, sources: Iterable[ModelSource], *others: object) -> None:
    """Check that all ranks see the same files: their sizes, and the first mebibyte of each.

    Args:
        ranks: who compares.
        sources: models, with all files in their directories.
        others: texts and further files; what is no file is left out.

    Raises:
        RequestError: on all ranks, with the rank and the file that differ.
    """
    if ranks.count == 1:
        return
    places = [path for source in sources for path in sorted(source.origin.iterdir())]
    places += [Path(other).expanduser() for other in others if is_path(other)]
    ranks.agree({f"the file {path.name}": _stamp(path) for path in places if path.is_file()})


def _versions() -> dict[str, str]:
    return {f"the version of {name}": version(name) for name in LIBRARIES}


def _shown(value: object) -> str:
    """An argument as text, for comparison and for messages."""
    if value is None or isinstance(value, str | int | float | os.PathLike):
        return str(value)
    if isinstance(value, Sequence):
        text = str([_shown(item) for item in value])
        return text if len(text) < 100 else f"{len(value)} items ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
    return getattr(value, "__qualname__", type(value).__name__)


def _stamp(path: Path) -> str:
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(HEAD)).hexdigest()[:12]
    return f"{path.stat().st_size:,} bytes ({head})"
