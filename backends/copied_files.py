"""The small files of a model directory that also belong into what is made from it. Code is copied only by consent.

Users of the copy may have to let code in it run, such as the modelling file of the free form. They read that file, and
do not expect the code of a stranger beside it: a configuration that names such code would make it run too.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError
from ..runtime.consent import Consent, code_references
from ..runtime.json_object import read_json_object
from ..runtime.model.own_code import CODE, code_files
from ..runtime.model_directory.tokenizer import without_paths
from ..runtime.model_files import copy_model_file
from .digests import sha256

COMPANIONS = (
    "tokenizer*", "vocab*", "*_vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "normalizer.json", "*.model", "*.tiktoken", "chat_template*", "*.jinja", "generation_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "LICENSE*",
)  # fmt: skip
"""Files of the source that also apply to what is made from it: tokenizer, generation, processing, licence. The settings
of another runtime are none of them: ``genai_config.json`` names native code to load."""

DATA = frozenset(
    ("", ".json", ".jsonl", ".txt", ".md", ".rst", ".jinja", ".model", ".tiktoken", ".vocab", ".bpe", ".merges", ".spm")
)
"""Suffixes of files that are read and never run."""

PROGRAMS = {
    "ELF": (b"\x7fELF",),
    "Mach-O": tuple(bytes.fromhex(mark) for mark in ("feedface", "feedfacf", "cefaedfe", "cffaedfe", "cafebabe")),
    "PE": (b"MZ",),
    "a script": (b"#!",),
}
"""Kinds of programs -> the bytes that they begin with. No file of data begins so."""

DAMAGED = "copy or download the model again"

_VERSION = re.compile(r"\.v\d+")
"""Some tokenizers have a version at the end of their name: ``tokenizer.model.v3``."""


NOT_NEEDED = "; the source was read without it, and so is this directory"
"""Why code that was not allowed to run is not missing."""


@dataclass(frozen=True)
class CopiedFiles:
    """What was copied that runs, and what was not copied.

    Attributes:
        code: file name -> sha256 of the code.
        left_out: what is not in the copy, in words.
    """

    code: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def and_also(self, other: CopiedFiles) -> CopiedFiles:
        """Both."""
        return CopiedFiles({**self.code, **other.code}, (*self.left_out, *other.left_out))

    def said(self) -> list[str]:
        """For the user, a line for the code and a line for each file that is not in the copy."""
        listed = [f"copied, since it may run: {', '.join(self.code)}"] if self.code else []
        return [*listed, *(f"not copied: {what}" for what in self.left_out)]


def companions(directory: Path) -> list[Path]:
    """The files of a model directory that also apply to what is made from it, by name."""
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    return [path for path in files if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in COMPANIONS)]


def other_digests(directory: Path) -> dict[str, str]:
    """Name -> sha256 of the files of a model directory, beside its weights, that decide what a run makes of it: its
    configuration, and what reads and writes its texts."""
    files = [directory / "config.json", *companions(directory)]
    return {path.name: sha256(path) for path in files if path.is_file() and not path.name.startswith("LICENSE")}


def copy_files(paths: Iterable[Path], folder: Path, consent: Consent) -> CopiedFiles:
    """Copy files into a directory: data, and by consent the code that the configuration files among them name.

    Without consent, or where that code is missing, an ``auto_map`` is taken out of the copy of a configuration, so that
    nothing looks for code there. Paths of another machine are taken out of the configuration of a tokenizer or of a
    processor. A program stays behind, whatever it is called.

    Args:
        paths: files of the directory that ``consent`` is for.
        folder: the directory to copy them to; files there are replaced.
        consent: what may run of the source.

    Raises:
        RequestError: code that may run is in another repository.
    """
    consent.keywords(consent.directory)
    references = code_references(consent.directory)
    code: dict[str, Path] = {}
    left_out: list[str] = []
    paths = list(paths)
    for path in paths:
        named = references.get(path.name, [])
        needed = code_files(named, consent.directory) if consent.code else None
        if path.suffix == CODE:
            continue  # what is named comes with the configuration that names it
        if path.suffix not in DATA and not _VERSION.fullmatch(path.suffix):
            left_out.append(f"{path.name}, which is not known to be data")
        else:
            copy_model_file(path, folder)
            if program := _program(folder / path.name):
                (folder / path.name).unlink()
                left_out.append(f"{path.name}, which begins as a program ({program})")
                continue
            if named and needed is None:
                _take_code_out(folder / path.name)
                left_out.append(f"the code that {path.name} names: {', '.join(named)}{NOT_NEEDED}")
            if gone := _take_paths_out(folder / path.name):
                left_out.append(f"the paths in {path.name}: {', '.join(gone)}")
            code |= needed or {}
    for file in code.values():
        copy_model_file(file, folder)
    unnamed = [path.name for path in paths if path.suffix == CODE and path.name not in code]
    left_out += [f"{name}, which is code" for name in unnamed]
    return CopiedFiles({name: sha256(folder / name) for name in code}, tuple(left_out))


def _program(path: Path) -> str:
    """The kind of program that a file is; "" for data. Asked of the copy, which nobody else changes."""
    with path.open("rb") as file:
        head = file.read(4)
    return next((kind for kind, marks in PROGRAMS.items() if head.startswith(marks)), "")


def _take_code_out(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_code)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_code(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name != "auto_map"}


def _take_paths_out(path: Path) -> list[str]:
    """Take out of the copy of a configuration of a tokenizer or a processor the entries that say where files were."""
    if not path.name.endswith(("tokenizer_config.json", "processor_config.json")):
        return []
    try:
        kept, gone = without_paths(read_json_object(path, DAMAGED))
    except RequestError:
        return []  # that of a processor is copied as it is, and read by nobody here
    if gone:
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return gone
