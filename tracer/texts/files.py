"""Rows of files as people have them: JSON, CSV, TSV, Parquet, Arrow and texts; ``.gz`` and ``.zst`` of these."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError, first_line
from ...ir.extras import require
from ...runtime.json_object import parse_json

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv", ".tsv")
COLUMN_SUFFIXES = (".parquet", ".arrow")
ROW_SUFFIXES = (*JSON_SUFFIXES, *CSV_SUFFIXES, *COLUMN_SUFFIXES)
"""Endings of files that hold rows with fields; any other file is one running text."""

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Ending of a compressed file -> what pyarrow calls its format."""

DATA_KEY = "data"
"""Where a JSON file that is one object holds its rows."""

_AT_ONCE = 1024
"""Rows of a Parquet or Arrow file in memory beside those that were read."""

_ARROW_FILE = b"ARROW1"
"""How an Arrow file begins that is no stream."""

_JSON_HINT = "give one JSON object per line, or a .json file with one list of objects"
_CSV_HINT = 'give a first line of column names, and "..." around a value that holds a comma or a line end'


def row_suffix(path: Path) -> str:
    """The ending that says how the rows of a file are written; "" for a running text, and for what is no file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ROW_SUFFIXES else ""


def decode_file(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, with line ends as ``\\n``.

    Raises:
        RequestError: for a file that is missing, not readable, not UTF-8, or empty.
    """
    try:
        text = _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"'{path}' is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}",
            "convert it, for example with `iconv -t utf-8`; rows may be in a file that ends in "
            + ", ".join(ROW_SUFFIXES),
        ) from None
    if not text.strip():
        raise RequestError(f"'{path}' is empty", "give a file with text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def file_rows(path: Path, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Place for messages and value of every row of a file whose :func:`row_suffix` is not empty.

    Args:
        path: the file.
        names: the columns that are wanted of a file of columns; all when empty, and where it lacks one of them.

    Raises:
        RequestError: it cannot be read, with the line where it has lines.
    """
    suffix = row_suffix(path)
    if suffix in COLUMN_SUFFIXES:
        return _column_rows(path, names)
    if suffix in CSV_SUFFIXES:
        return _csv_rows(path, decode_file(path), tabs=suffix == ".tsv")
    return json_rows(path)


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Place for messages and value of every row of a JSON or JSON-lines file.

    Raises:
        RequestError: for invalid JSON, with the line.
    """
    text = decode_file(path)
    if text.lstrip().startswith("["):
        return _listed(path, _parse(text, f"'{path}'"))
    if row_suffix(path) == ".json" and isinstance(whole := _one_object(text), dict):
        held = whole.get(DATA_KEY)
        return _listed(path, held if isinstance(held, list) else [whole])
    return _parse_lines(path, text)


def missing_file(path: Path) -> RequestError:
    """What to raise where no text is."""
    return RequestError(f"there is no text file '{path}'", "check the path")


def _content(path: Path) -> bytes:
    """The bytes of a file, decompressed where its name ends so."""
    try:
        if (form := COMPRESSED.get(path.suffix.lower())) is None:
            return path.read_bytes()
        require(f"the compressed '{path}'", "pyarrow")
        with path.open("rb"):  # for the errors of the system, which pyarrow words in its own way
            import pyarrow

        with pyarrow.input_stream(str(path), compression=form) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        if error.strerror:
            raise RequestError(f"'{path}' cannot be read: {error.strerror}", "give a readable file") from None
        hint = "it is damaged or not compressed so: copy it again, or correct its ending"
        raise RequestError(f"'{path}' cannot be decompressed: {first_line(error)}", hint) from None


def column_names(path: Path) -> list[str]:
    """The names of the columns of a file of columns.

    Raises:
        RequestError: as :func:`file_rows`.
    """
    with _columns(path) as columns:
        return columns.names


def _column_rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Rows of columns. Their values are plain: nothing in the schema leads to another file, or decodes one."""
    number = 0
    with _columns(path) as columns:
        wanted = list(names) if names and set(names) <= set(columns.names) else columns.names
        for batch in columns.batches(wanted):
            for row in batch.to_pylist():
                yield f"'{path}' row {number}", row
                number += 1


@dataclass(frozen=True)
class _Columns:
    """An open file of columns.

    Attributes:
        names: of the columns.
        batches: gives the rows of some columns, a batch after the other.
    """

    names: list[str]
    batches: Callable[[list[str]], Iterable[Any]]


@contextmanager
def _columns(path: Path) -> Iterator[_Columns]:
    """Open a Parquet or Arrow file; what is wrong with it, also further inside, is an error with its name."""
    require(f"'{path}'", "pyarrow")
    import pyarrow

    suffix = row_suffix(path)
    if path.suffix.lower() in COMPRESSED:
        raise RequestError(f"'{path}' is compressed twice: {suffix} has its own compression", "decompress it")
    try:
        with _parquet(path) if suffix == ".parquet" else _arrow(path) as found:
            yield found
    except FileNotFoundError:
        raise RequestError(f"there is no file '{path}'", "check the path") from None
    except (pyarrow.ArrowException, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        hint = "copy it again, or correct its ending"
        raise RequestError(f"'{path}' cannot be read as {suffix}: {why}", hint) from None


@contextmanager
def _parquet(path: Path) -> Iterator[_Columns]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield _Columns(file.schema_arrow.names, lambda names: file.iter_batches(_AT_ONCE, columns=names))


@contextmanager
def _arrow(path: Path) -> Iterator[_Columns]:
    import pyarrow

    with path.open("rb") as file:
        head = file.read(len(_ARROW_FILE))
    with pyarrow.memory_map(str(path)) as mapped:
        # `datasets` writes streams; other programs write files.
        reader = (pyarrow.ipc.open_file if head == _ARROW_FILE else pyarrow.ipc.open_stream)(mapped)
        table = reader.read_all()
        yield _Columns(table.column_names, lambda names: table.select(names).to_batches(_AT_ONCE))


def _csv_rows(path: Path, text: str, *, tabs: bool) -> Iterator[tuple[str, Any]]:
    """Rows by the names in the first line; an empty value is null."""
    head = text.partition("\n")[0]
    sign = "\t" if tabs else ";" if "," not in head and ";" in head else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    names: list[str] = []
    try:
        with _long_values():
            for values in reader:
                where = f"'{path}' line {reader.line_num}"
                if not names:
                    names = [name.strip() for name in values]
                elif len(values) > len(names):
                    raise RequestError(
                        f"{where} has {len(values)} values, and the first line names {len(names)} columns", _CSV_HINT
                    )
                elif values:
                    padded = [*values, *[""] * (len(names) - len(values))]
                    yield where, {name: value or None for name, value in zip(names, padded, strict=True)}
    except csv.Error as error:
        raise RequestError(f"'{path}' line {reader.line_num} is no row of values: {error}", _CSV_HINT) from None


@contextmanager
def _long_values() -> Iterator[None]:
    """Inside, a value of a CSV file may be longer than 131,072 characters."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _one_object(text: str) -> Any:
    """The data of a file that is one object; None where it is lines of them, or damaged."""
    try:
        return parse_json(text, "", "") if text.lstrip().startswith("{") else None
    except RequestError:
        return None


def _parse_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): it also splits at U+2028 and similar characters, which may be in JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"'{path}' line {number}"
            yield where, _parse(line, where)


def _listed(path: Path, rows: list[Any]) -> Iterator[tuple[str, Any]]:
    for index, row in enumerate(rows):
        yield f"'{path}' row {index}", row


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text, where, _JSON_HINT)
    except RequestError as error:
        if not isinstance(fault := error.__cause__, json.JSONDecodeError):
            raise
        place = where if fault.lineno == 1 else f"{where} line {fault.lineno}"
        raise RequestError(f"{place} is not valid JSON: {fault.msg} at column {fault.colno}", _JSON_HINT) from None


VALUE_SHOWN = 40
"""Characters of a value in a message."""


def kind_of(value: Any) -> str:
    """What a value is and, shortened, what it says, for messages: ``null``, ``int: 3``, ``str: "hello"``."""
    if value is None:
        return "null"
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__
    return f"{type(value).__name__}: {text if len(text) <= VALUE_SHOWN else text[: VALUE_SHOWN - 3] + '...'}"


def listing(row: Mapping[str, Any]) -> str:
    """The fields of a row, for messages."""
    return ", ".join(map(str, row)) or "none"
