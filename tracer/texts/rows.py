"""Reads rows from files and from ``datasets``, and converts them to plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError, first_line
from ...ir.extras import require
from .data_set import load_rows, text_columns
from .files import COLUMN_SUFFIXES, column_names, file_rows, row_suffix
from .formats import Records, format_of, render_rows
from .templates import ChatTemplate


def read_file(path: Path, field: str | None = None, template: ChatTemplate | None = None) -> Records:
    """Rows of a file, whose ending says how they are written.

    Raises:
        RequestError: it cannot be read (with the line), a row is not an object, or rows have no known field.
    """
    names: tuple[str, ...] = ()
    if row_suffix(path) in COLUMN_SUFFIXES:
        names = _columns(dict.fromkeys(column_names(path)), f"'{path}'", field)
    return render_rows(file_rows(path, names), str(path), field, template)


def read_dataset(
    spec: str, field: str | None = None, template: ChatTemplate | None = None, split: str | None = None
) -> Records:
    """Rows of a ``datasets`` id or directory: ``id`` (its ``train`` split), ``id:split`` or ``id:config:split``.

    Args:
        spec: the data set.
        field: the field to read.
        template: of the model's tokenizer.
        split: the split, where the name says none.

    Raises:
        RequestError: when it cannot be loaded (unknown, offline, no such split), has no known field,
            its field holds no text, or it reads files outside of its directory or of the Hub.
    """
    name, config, chosen = split_spec(spec, split)
    require(f"'{spec}' is no file; a data set", "datasets")
    with quiet_datasets():
        try:
            with load_rows(name, config, chosen) as held:
                names = _columns(dict.fromkeys(held.column_names), f"'{spec}' row 0", field)
                rows = text_columns(held, names, spec)
                placed = ((f"'{spec}' row {i}", row) for i, row in enumerate(rows))
                return render_rows(placed, spec, field, template)
        except RequestError:
            raise
        except Exception as error:
            # Depending on the cause, the library raises ConnectionError, ValueError and others; also at a row.
            raise RequestError(
                f"'{spec}' is neither a file nor a data set that can be loaded: {first_line(error)}",
                "check the path; for a data set check `id:config:split` and the network",
            ) from error


def _columns(row: dict[str, Any], where: str, field: str | None) -> tuple[str, ...]:
    """The columns that are read of a table, from the names of all."""
    form = format_of(row, where, field)
    fields = (name if name in row else name.partition(".")[0] for name in form.fields)
    return tuple(dict.fromkeys((*fields, *(name for name in form.also if name in row))))


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Inside, ``datasets`` shows no progress bars."""
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


def split_spec(spec: str, split: str | None = None) -> tuple[str, str | None, str]:
    """``id[:config][:split]`` -> (id, config, split). Colons inside brackets belong to the split, as in ``train[:1%]``.

    Args:
        spec: the data set.
        split: the split, where the name says none: ``id:config`` then names a configuration.

    Raises:
        RequestError: for more than three parts, or an empty part; for two splits.
    """
    parts = re.split(r":(?![^\[]*\])", spec)
    if len(parts) > 3 or not all(parts):
        raise RequestError(f"'{spec}' is not a data set name", "write it as `id`, `id:split` or `id:config:split`")
    name, *rest = parts
    if split is not None:
        if len(rest) > 1:
            raise RequestError(f"'{spec}' names the split {rest[1]!r}, and --split {split!r}", "leave one of them out")
        return name, rest[0] if rest else None, split
    chosen = rest.pop() if rest else "train"
    return name, rest[0] if rest else None, chosen
