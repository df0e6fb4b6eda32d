"""Reads rows from JSON files and from ``datasets``, and converts them to plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError, first_line
from ...ir.extras import require
from ...runtime.json_object import parse_json
from .data_set import load_rows, text_columns

_ALSO_READ = {"input"}
"""Alpaca's third field, which rows may lack."""

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
FIELDS_HINT = (
    "give rows with a `text` field, or Alpaca's `instruction` and `output` (and `input`); or name the field to read"
)

# The two prompts of Stanford Alpaca, the published format for training on instruction rows.
_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n{output}"
)
_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
)


@dataclass(frozen=True)
class Records:
    """Rows as text.

    Attributes:
        rows: one text per row, in order; a row may be empty.
        complete: whether each row is a complete text (an instruction with its answer), which ends with an end-of-text
            token.
    """

    rows: tuple[str, ...]
    complete: bool


def decode_file(path: Path) -> str:
    """The text of a UTF-8 file, with line ends as ``\\n``.

    Raises:
        RequestError: for a file that is missing, not readable, not UTF-8, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"there is no text file '{path}'", "check the path") from None
    except UnicodeDecodeError as error:
        raise RequestError(
            f"'{path}' is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}",
            "convert it, for example with `iconv -t utf-8`",
        ) from None
    except OSError as error:
        raise RequestError(f"'{path}' cannot be read: {error.strerror}", "give a readable file") from None
    if not text.strip():
        raise RequestError(f"'{path}' is empty", "give a file with text")
    return text


def read_json(path: Path, field: str | None = None) -> Records:
    """Rows of a JSON-lines file, or of a JSON file with one list of rows.

    Raises:
        RequestError: for invalid JSON (with the line), a row that is not an object, or rows without a known field.
    """
    return render_rows(json_rows(path), str(path), field)


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Place for messages and value of every row, as :func:`read_json` finds them.

    Raises:
        RequestError: for invalid JSON, with the line.
    """
    text = decode_file(path)
    parse = _parse_list if text.lstrip().startswith("[") else _parse_lines
    yield from parse(path, text)


def read_dataset(spec: str, field: str | None = None) -> Records:
    """Rows of a ``datasets`` id or directory: ``id`` (its ``train`` split), ``id:split`` or ``id:config:split``.

    Raises:
        RequestError: when it cannot be loaded (unknown, offline, no such split), has no known field,
            its field holds no text, or it reads files outside of its directory or of the Hub.
    """
    name, config, split = split_spec(spec)
    require(f"'{spec}' is no file; a data set", "datasets")
    with quiet_datasets():
        try:
            rows = load_rows(name, config, split)
            row = dict.fromkeys(rows.column_names)
            names = _fields_of(row, f"'{spec}' row 0", field)
            rows = text_columns(rows, (*names, *(_ALSO_READ & row.keys() if len(names) > 1 else ())), spec)
            return render_rows(((f"'{spec}' row {i}", row) for i, row in enumerate(rows)), spec, field)
        except RequestError:
            raise
        except Exception as error:
            # Depending on the cause, the library raises ConnectionError, ValueError and others; also at a row.
            raise RequestError(
                f"'{spec}' is neither a file nor a data set that can be loaded: {first_line(error)}",
                "check the path; for a data set check `id:config:split` and the network",
            ) from error


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


def split_spec(spec: str) -> tuple[str, str | None, str]:
    """``id[:config][:split]`` -> (id, config, split). Colons inside brackets belong to the split, as in ``train[:1%]``.

    Raises:
        RequestError: for more than three parts, or an empty part.
    """
    parts = re.split(r":(?![^\[]*\])", spec)
    if len(parts) > 3 or not all(parts):
        raise RequestError(f"'{spec}' is not a data set name", "write it as `id`, `id:split` or `id:config:split`")
    name, *rest = parts
    split = rest.pop() if rest else "train"
    return name, rest[0] if rest else None, split


def render_rows(rows: Iterable[tuple[str, Any]], source: str, field: str | None = None) -> Records:
    """Convert rows to texts, with the fields of the first row.

    Args:
        rows: pairs (place of the row for messages, the row).
        source: name of the source for messages.
        field: the field to read; None looks for ``text``, then for Alpaca's three fields.

    Raises:
        RequestError: for no rows, a row that is not an object, or a row without the fields of the first row.
    """
    texts: list[str] = []
    names: tuple[str, ...] = ()
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise RequestError(f"{where} is not an object but {type(row).__name__}", FIELDS_HINT)
        names = names or _fields_of(row, where, field)
        values = {name: _string(row, name, where) for name in names}
        texts.append(_alpaca(values, row, where) if len(names) > 1 else values[names[0]])
    if not any(text.strip() for text in texts):
        raise RequestError(f"'{source}' is empty", "give rows with text")
    return Records(tuple(texts), complete=len(names) > 1)


def _fields_of(row: Mapping[str, Any], where: str, field: str | None) -> tuple[str, ...]:
    candidates = [(field,)] if field else [("text",), ("instruction", "output")]
    for names in candidates:
        if all(name in row for name in names):
            return names
    wanted = f"no field '{field}'" if field else "no known text field"
    raise RequestError(f"{where} has {wanted}; its fields: {_listing(row)}", FIELDS_HINT)


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise RequestError(f"{where} has no field '{name}'; its fields: {_listing(row)}", FIELDS_HINT)
    value = row[name]
    if not isinstance(value, str):
        raise RequestError(f"{where}: field '{name}' is not a string but {type(value).__name__}", FIELDS_HINT)
    return value


def _alpaca(values: Mapping[str, str], row: Mapping[str, Any], where: str) -> str:
    context = _string(row, "input", where) if row.get("input") else ""
    return (_PROMPT_WITH_INPUT if context else _PROMPT).format(input=context, **values)


def _listing(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _parse_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): it also splits at U+2028 and similar characters, which may be in JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"'{path}' line {number}"
            yield where, _parse(line, where)


def _parse_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for index, row in enumerate(_parse(text, f"'{path}'")):
        yield f"'{path}' row {index}", row


def _parse(text: str, where: str) -> Any:
    try:
        return parse_json(text, where, _JSON_HINT)
    except RequestError as error:
        if not isinstance(fault := error.__cause__, json.JSONDecodeError):
            raise
        place = where if fault.lineno == 1 else f"{where} line {fault.lineno}"
        raise RequestError(f"{place} is not valid JSON: {fault.msg} at column {fault.colno}", _JSON_HINT) from None


_JSON_HINT = "give one JSON object per line, or a .json file with one list of objects"
