"""JSON that somebody else wrote: read within limits, and checked against what is expected of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError, is_utf8
from .model_directory.regular_file import open_regular

DEEPEST = 100
"""Lists and objects inside one another: what walks through the data calls itself at every level."""

LARGEST = 1 << 28
"""Bytes of a file. In memory its data takes several times as much."""


def parse_json(text: str, where: str, hint: str) -> Any:
    """The data of a JSON text.

    Args:
        text: the text.
        where: what it is, for messages.
        hint: what to do where it is damaged.

    Raises:
        RequestError: it is no JSON, is nested too deep, holds a number of thousands of digits, or half of a surrogate
            pair, which no file can hold as UTF-8.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise RequestError(f"{where} is damaged: it is nested too deep", hint) from None
    except ValueError as error:
        raise RequestError(f"{where} is damaged: {error}", hint) from error
    if why := oddity(data):
        raise RequestError(f"{where} is damaged: {why}", hint)
    return data


def read_json_object(path: Path, hint: str, *, links: bool = True) -> dict[str, Any]:
    """What a file holds that exists.

    Args:
        path: the file.
        hint: what to do where it is damaged.
        links: whether it may be a link to a file.

    Raises:
        RequestError: when it cannot be read, is no regular file, or is larger than :data:`LARGEST`; as
            :func:`parse_json`; or when it holds something else than an object.
    """
    try:
        with open_regular(path, links=links) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RequestError(f"{path} is larger than {LARGEST:,} bytes", hint)
        text = content.decode("utf-8")
    except (ValueError, OSError) as error:
        raise RequestError(f"{path} is damaged: {error}", hint) from error
    data = parse_json(text, str(path), hint)
    if not isinstance(data, dict):
        raise RequestError(f"{path} is damaged: it is not a JSON object", hint)
    return data


def check_schema(data: Mapping[str, Any], schema: Any, where: object, hint: str) -> None:
    """Check data of a file against what its readers expect.

    Args:
        data: from :func:`read_json_object` or :func:`parse_json`.
        schema: a ``TypedDict``; keys that it does not name are not looked at.
        where: the file, for messages.
        hint: what to do where it does not fit.

    Raises:
        RequestError: naming the first value that is of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(schema).validate_python(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        # Keys in brackets are pydantic's own, for the alternatives of a union.
        place = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise RequestError(f"{where} is damaged: {place!r}: {message}, not {_shown(first['input'])}", hint) from error


def oddity(data: Any) -> str:
    """What makes JSON data unfit to be used; "" when nothing does."""
    level = [data]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not value.isascii() and not is_utf8(value):
                return "it holds half of a surrogate pair"
        if not inner:
            return ""
        level = inner
    return "it is nested too deep"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
