"""Rows of JSON files and of ``datasets`` as records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError, first_line
from ...ir.extras import require
from ..texts.data_set import check_inside, load_rows
from ..texts.files import file_rows
from ..texts.rows import quiet_datasets, split_spec
from .media import Medium
from .records import FIELDS, NAMES_HINT, Record, fields_of


def read_row_records(path: Path) -> list[Record]:
    """The rows of a file of rows, such as JSON lines or CSV.

    Raises:
        RequestError: it cannot be read, or a row has no text.
    """
    found = []
    for where, row in file_rows(path):
        if not isinstance(row, Mapping):
            raise RequestError(f"{where} is not an object but {type(row).__name__}", NAMES_HINT)
        record = fields_of(row, where)
        if record.text is None:
            raise RequestError(f"{where} has no text; its fields: {', '.join(row) or 'none'}", NAMES_HINT)
        found.append(record)
    return found


def read_data_set(spec: str) -> list[Record]:
    """The rows of a ``datasets`` id or directory: ``id`` (its ``train`` split), ``id:split`` or ``id:config:split``.

    Images and sounds are those whose bytes are in the tables, or files in its directory. They are not decoded here.

    Raises:
        RequestError: it cannot be loaded, or has no field that is known.
    """
    name, config, split = split_spec(spec)
    require(f"'{spec}' is no file; a data set", "datasets")
    folder = Path(name) if Path(name).is_dir() else None
    with quiet_datasets():
        try:
            with load_rows(name, config, split) as held:
                rows, media = _known_columns(held, spec)
                classes = {name: feature for name, feature in rows.features.items() if hasattr(feature, "int2str")}
                return [
                    _record(_with_names(row, classes), f"'{spec}' row {number}", media, folder)
                    for number, row in enumerate(rows)
                ]
        except RequestError:
            raise
        except Exception as error:  # the library raises ConnectionError, ValueError and others
            raise RequestError(
                f"'{spec}' is neither a file nor a data set that can be loaded: {first_line(error)}",
                "check the path; for a data set check `id:config:split` and the network",
            ) from error


def _known_columns(rows: Any, spec: str) -> tuple[Any, tuple[str, str] | None]:
    """The columns that are read, without decoding; the column of images or sounds, and which of the two."""
    import datasets

    media = {datasets.Image: "image", datasets.Audio: "sound"}
    found = [(name, media[type(feature)]) for name, feature in rows.features.items() if type(feature) in media]
    if len(found) > 1:
        raise RequestError(f"'{spec}' has the fields {found[0][0]} and {found[1][0]}", "keep one of them")
    known = [name for names in FIELDS.values() for name in names if name in rows.features]
    for name in known:
        if not isinstance(rows.features[name], datasets.Value | datasets.ClassLabel):
            raise RequestError(f"'{spec}': field '{name}' holds no plain values", NAMES_HINT)
    if not known and not found:
        raise RequestError(f"'{spec}' has no known field; its fields: {', '.join(rows.features)}", NAMES_HINT)
    rows = rows.select_columns([*known, *(name for name, _ in found)])
    for name, kind in found:
        rows = rows.cast_column(name, (datasets.Image if kind == "image" else datasets.Audio)(decode=False))
    return rows, found[0] if found else None


def _with_names(row: Mapping[str, Any], classes: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the names of classes in place of their numbers."""
    return {
        name: classes[name].int2str(value) if name in classes and value is not None else value
        for name, value in row.items()
    }


def _record(row: Mapping[str, Any], where: str, media: tuple[str, str] | None, folder: Path | None) -> Record:
    if media is None:
        return fields_of(row, where)
    name, kind = media
    stored = row[name] or {}
    if stored.get("bytes") is not None:
        return fields_of(row, where, medium=Medium(where, data=stored["bytes"]), kind=kind)
    if stored.get("path") is None or folder is None:
        raise RequestError(f"{where}: '{name}' holds no {kind}", "give a data set that holds its bytes")
    check_inside(stored["path"], folder)
    return fields_of(row, where, medium=Medium(where, Path(stored["path"])), kind=kind)
