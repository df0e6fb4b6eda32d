"""A folder of images or of sounds, as ``datasets`` lays them out: ``metadata.jsonl`` or ``metadata.csv`` beside them
says what is to be said of each file, or the folders that they are in name their classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError
from ..texts.data_set import check_inside
from ..texts.files import decode_file, json_rows
from .media import IMAGES, SOUNDS, Medium
from .records import Record, fields_of

METADATA = ("metadata.jsonl", "metadata.csv")
FILE = "file_name"


def is_media_folder(path: Path) -> bool:
    """Whether a directory holds images or sounds, at any depth."""
    return path.is_dir() and next(_media(path), None) is not None


def read_folder(folder: Path) -> list[Record]:
    """The files of a folder as records, in the order of their names, or in that of the metadata.

    Raises:
        RequestError: it holds images and sounds, a link that leads out of it, or metadata that does not fit.
    """
    files = sorted(_media(folder))
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise RequestError(f"{folder} holds images and sounds", "give a folder of one kind")
    kind = kinds.pop() if kinds else ""
    for file in files:
        check_inside(str(file), folder)
    described = [folder / name for name in METADATA if (folder / name).exists() or (folder / name).is_symlink()]
    if described:
        check_inside(str(described[0]), folder)
        return list(_from_metadata(folder, described[0], kind))
    inside = [file for file in files if file.parent != folder]
    if inside and len(inside) < len(files):
        raise RequestError(
            f"{folder} holds files beside folders of them",
            "put all files in the folder, or each in a folder that is named as its class",
        )
    return [
        Record(
            f"'{file.relative_to(folder)}'",
            medium=Medium(str(file), file),
            kind=kind,
            label=file.relative_to(folder).parts[0] if inside else None,
        )
        for file in files
    ]


def _from_metadata(folder: Path, metadata: Path, kind: str) -> Iterator[Record]:
    for where, row in _rows(metadata):
        name = row.get(FILE) if isinstance(row, Mapping) else None
        if not isinstance(name, str):
            raise RequestError(f"{where} has no {FILE}", f"give {FILE}: the path of the file in {folder}")
        file = folder / name
        check_inside(str(file), folder)
        if _kind(file) != kind:
            raise RequestError(f"{where}: {name!r} is no file like the others", "give a folder of one kind")
        yield fields_of(row, where, medium=Medium(str(file), file), kind=kind)


def _rows(metadata: Path) -> Iterator[tuple[str, Any]]:
    if metadata.suffix == ".jsonl":
        yield from json_rows(metadata)
        return
    for number, row in enumerate(csv.DictReader(decode_file(metadata).splitlines()), start=2):
        yield f"'{metadata}' line {number}", row


def _media(folder: Path) -> Iterator[Path]:
    """Images and sounds in a folder, without those whose names begin with a dot. Links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(place) / name for name in sorted(files) if not name.startswith(".") and _kind(Path(name)) != ""
        )


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    return "image" if suffix in IMAGES else "sound" if suffix in SOUNDS else ""
