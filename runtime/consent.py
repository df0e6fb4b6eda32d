"""What the user allows to run of one directory. Consent belongs to a directory, never to a run.

A model directory may hold Python code, which transformers runs when it is told to, and pickles, which run code when
they are read. Whatever opens a directory is given the :class:`Consent` for this very directory, and asks it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..ir.errors import FxpruneError, RequestError
from .json_object import oddity
from .model_directory.config_file import check_entries

CONFIGS = "*config.json"
"""The files in which an ``auto_map`` names code: of the model, its tokenizer, its processors."""

KERNELS = tuple(f"{prefix}{part}_implementation" for prefix in ("", "_") for part in ("attn", "experts"))
"""Entries of a configuration that may name code of the Hub, which transformers downloads with the package kernels."""


@dataclass(frozen=True)
class Consent:
    """What may run of a directory. It is made by :meth:`nothing`, :meth:`of_user`, :meth:`of_written` or
    :meth:`for_copy` only.

    Attributes:
        directory: the directory.
        code: whether Python code in it may run.
        pickle: whether pickles in it may be read.
        written: name -> sha256 of the code that fxprune itself has written there; when there is any, only this runs.
    """

    directory: Path
    code: bool = False
    pickle: bool = False
    written: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def nothing(cls, directory: Path) -> Consent:
        """Nothing in this directory runs."""
        return cls(directory)

    @classmethod
    def of_user(cls, directory: Path, *, code: bool, pickle: bool = False) -> Consent:
        """What the user has said about MODEL, which is this directory."""
        return cls(directory, code, pickle)

    @classmethod
    def of_written(cls, directory: Path, files: Mapping[str, str]) -> Consent:
        """What fxprune has written into this directory: file name -> sha256. In this run; or in an earlier one, as its
        record lists it, where the user allows that in this call."""
        return cls(directory, bool(files), written=dict(files))

    def for_copy(self, directory: Path) -> Consent:
        """What has been said about the directory, about a copy of it that fxprune has made."""
        return replace(self, directory=directory)

    def keywords(self, directory: Path | str) -> dict[str, bool]:
        """The arguments by which transformers is told whether code in ``directory`` may run. It never asks then.

        Raises:
            RequestError: code may run, but it is in another repository; or the configuration wants kernels of the Hub,
                which are downloaded and run; or as :func:`~.model_directory.config_file.check_entries`.
            FxpruneError: code that fxprune has written is no longer what it was.
        """
        _ask_nobody()
        _check_kernels(Path(directory))
        allowed = self.code and Path(directory).resolve() == self.directory.resolve()
        file = Path(directory) / "config.json"
        check_entries(_read(file), file, own_code=allowed and not self.written)
        if allowed:
            self._check_written()
            self._check_place()
        return {"trust_remote_code": allowed}

    def moved(self, directory: Path) -> Consent:
        """The same for the same directory, which fxprune has moved."""
        return replace(self, directory=directory)

    def to_json(self) -> dict[str, Any]:
        """As JSON data, for another process."""
        return {
            "directory": str(self.directory.absolute()),
            "code": self.code,
            "pickle": self.pickle,
            "written": dict(self.written),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Consent:
        """The inverse of :meth:`to_json`."""
        return cls(Path(data["directory"]), data["code"], data["pickle"], data["written"])

    def _check_written(self) -> None:
        for name, digest in self.written.items():
            file = self.directory / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise FxpruneError(
                    f"{file} is not the file that fxprune wrote", "let nothing else write into that directory"
                )

    def _check_place(self) -> None:
        for name, references in code_references(self.directory).items():
            for reference in references:
                if "--" in reference:
                    raise RequestError(
                        f"{self.directory / name} names code of another repository: {reference}",
                        "copy that code into the directory, read it, and name it without the repository",
                    )


def _ask_nobody() -> None:
    """For the parts of a model transformers asks on standard input, whatever it was told of the whole. With a limit of
    0 seconds it refuses instead. This stays so: every reading of a model begins here, and none has an end of its own.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def _check_kernels(directory: Path) -> None:
    """Refuse a configuration in which an implementation is one of the Hub: ``owner/name``."""
    for name, value in _items(_read(directory / "config.json")):
        if name in KERNELS:
            for kernel in _leaves(value):
                if "/" in kernel:
                    raise RequestError(
                        f"{directory / 'config.json'} names code of another repository: {name} {kernel!r}",
                        f"take {name} out of the file",
                    )


def code_references(directory: Path) -> dict[str, list[str]]:
    """Name of a configuration file -> the ``module.Class`` in its ``auto_map``, for each that names code."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.glob(CONFIGS)):
        named = [text for name, value in _items(_read(path)) if name == "auto_map" for text in _leaves(value)]
        if named:
            found[path.name] = named
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # whoever reads the file says what is wrong with it
    if why := oddity(data):
        raise RequestError(f"{path} is damaged: {why}", "copy or download the model again")
    return data if isinstance(data, dict) else {}


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """All entries of nested dicts."""
    if isinstance(value, dict | list):
        yield from value.items() if isinstance(value, dict) else ()
        for item in value.values() if isinstance(value, dict) else value:
            yield from _items(item)


def _leaves(value: Any) -> Iterator[str]:
    """All strings in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
