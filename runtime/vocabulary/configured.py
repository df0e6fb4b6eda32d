"""Ids of tokens in configurations: which entries hold some is data, in ``token_ids.json``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .tokens import NewId


@functools.cache
def _known() -> dict[str, list[str]]:
    table: dict[str, list[str]] = json.loads((Path(__file__).parent / "token_ids.json").read_text(encoding="utf-8"))
    return table


def holds_ids(name: str) -> bool:
    """Whether an entry of this name holds ids of tokens."""
    known = _known()
    others = (*known["names"], *known["pairs"], *known["maps"], *known["biases"])
    return name.endswith(tuple(known["endings"])) or name in others


def needed_ids(data: Any) -> set[int]:
    """The ids that a configuration names, at any depth, and that have to stay.

    Args:
        data: a configuration as data.
    """
    found: set[int] = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    for name, value in _entries(data):
        if name not in _known()["may_go"]:
            _renumbered(name, value, note)
    return {number for number in found if number >= 0}


def renumbered_data(data: Any, new: NewId, count: tuple[int, int] | None = None) -> Any:
    """A configuration, as data, with new ids.

    Args:
        data: a configuration or a part of one.
        new: of ids.
        count: the number of tokens before and now, when entries that count them change too.
    """
    if isinstance(data, list):
        return [renumbered_data(item, new, count) for item in data]
    if not isinstance(data, dict):
        return data
    return {name: _new_value(name, value, new, count) for name, value in data.items()}


def renumber_configs(configs: Iterable[Any], new: NewId, count: tuple[int, int] | None = None) -> Callable[[], None]:
    """Give configurations of transformers new ids, in place, and those inside them; returns what takes that back.

    Args:
        configs: of a model, of its modules, of its generation; they may share parts.
        new, count: as in :func:`renumbered_data`.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[int] = set()

    def change(held: Any) -> None:
        if id(held) in seen:
            return
        seen.add(id(held))
        values = vars(held)
        for name, value in list(values.items()):
            if hasattr(value, "to_dict") and not isinstance(value, type):
                change(value)
            elif not name.startswith("_") and (now := _new_value(name, value, new, count)) != value:
                undo.append((values, name, value))
                values[name] = now

    for config in configs:
        change(config)

    def take_back() -> None:
        for values, name, value in reversed(undo):
            values[name] = value

    return take_back


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        for name, value in data.items():
            if isinstance(name, str) and holds_ids(name):
                yield name, value
            else:
                yield from _entries(value)
    elif isinstance(data, list):
        for item in data:
            yield from _entries(item)


def _new_value(name: Any, value: Any, new: NewId, count: tuple[int, int] | None) -> Any:
    if isinstance(name, str) and holds_ids(name):
        return _renumbered(name, value, new)
    if count is not None and name in _known()["counts"] and value == count[0]:
        return count[1]
    return renumbered_data(value, new, count) if isinstance(value, dict | list) else value


def _renumbered(name: str, value: Any, new: NewId) -> Any:
    known = _known()
    if name in known["pairs"] and isinstance(value, list):
        return [[place, _each(number, new)] for place, number in value]
    if name in known["maps"] and isinstance(value, dict):
        return {text: _each(number, new) for text, number in value.items()}
    if name in known["biases"] and isinstance(value, list):
        return [[_each(numbers, new), bias] for numbers, bias in value]
    return _each(value, new)


def _each(value: Any, new: NewId) -> Any:
    """The new ids of an id, or of a list of them or of lists; what names one that went is left out."""
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return value
    if isinstance(value, int):
        return value if value < 0 else new(value)
    inner = [_each(item, new) for item in value]
    if any(isinstance(item, list) for item in value):
        return [now for before, now in zip(value, inner, strict=True) if len(now) == len(before)]
    return [number for number in inner if number is not None]
