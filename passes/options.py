"""The options of a pass: their types, and how values are read from text and written as text."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Pass

BARE = re.compile(r"[A-Za-z0-9_.:+/-]+")
NONE = "none"


@dataclass(frozen=True)
class Option:
    """One option of a pass, declared by a field of its dataclass.

    Attributes:
        name: its name in pipeline text.
        type: ``int``, ``float``, ``bool``, ``str``, or ``tuple[int, int]`` for a range ``START:END``, end exclusive.
        optional: whether ``none`` is allowed.
        default: the value when the text does not give the option.
        choices: the allowed values; None when they cannot be listed.
        help: one line for the user.
    """

    name: str
    type: Any
    optional: bool
    default: Any
    choices: tuple[Any, ...] | None
    help: str

    @property
    def wants(self) -> str:
        """The allowed values, as text for an error or a table."""
        if self.choices:
            return " | ".join(write_value(choice) for choice in self.choices)
        return _READERS[self.type].wants + (f" | {NONE}" if self.optional else "")

    def read(self, text: str, *, quoted: bool = False) -> Any:
        """Convert text to a value of the option's type.

        Args:
            text: the value, without quotes.
            quoted: whether it was in quotes; then it is always a string.

        Raises:
            ValueError: when the text is not a value of this option.
        """
        if self.optional and text == NONE and not quoted:
            return None
        if quoted and self.type is not str:
            raise ValueError(text)
        value = _READERS[self.type].read(text)
        if self.choices and value not in self.choices:
            raise ValueError(text)
        return value


def write_value(value: Any) -> str:
    """The text that :meth:`Option.read` converts back to ``value``; quoted when a bare word would be read wrongly."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ":".join(map(str, value))
    text = str(value)
    if isinstance(value, str) and (text == NONE or not BARE.fullmatch(text)):
        return json.dumps(text)
    return text


def options_of(pass_class: type[Pass]) -> tuple[Option, ...]:
    """The options of a pass in the order of its fields.

    Raises:
        TypeError: when a field has a type without a text form; this is a bug in the pass.
    """
    hints = typing.get_type_hints(pass_class)
    return tuple(
        _option(pass_class, field, hints[field.name]) for field in dataclasses.fields(pass_class) if field.init
    )


def _option(pass_class: type[Pass], field: dataclasses.Field[Any], hint: Any) -> Option:
    type_, optional, choices = _simplify(hint)
    if type_ not in _READERS:
        raise TypeError(f"{pass_class.__name__}.{field.name}: pipeline text has no form for {hint}")
    choices = field.metadata.get("choices") or choices
    return Option(field.name, type_, optional, field.default, choices, field.metadata.get("help", ""))


def _simplify(hint: Any) -> tuple[Any, bool, tuple[Any, ...] | None]:
    """Split a type hint into the type without ``| None`` and ``Literal``, whether None is allowed, and the choices."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
        optional = len(arms) < len(typing.get_args(hint))
        hint = arms[0] if len(arms) == 1 else hint
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        return type(choices[0]), optional, choices
    return hint, optional, None


@dataclass(frozen=True)
class _Reader:
    read: Callable[[str], Any]
    wants: str


def _read_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _read_range(text: str) -> tuple[int, int]:
    start, end = (int(part) for part in text.split(":"))
    if not 0 <= start < end:
        raise ValueError(text)
    return start, end


_READERS: dict[Any, _Reader] = {
    int: _Reader(int, "integer"),
    float: _Reader(_read_float, "number"),
    bool: _Reader(_read_bool, "true | false"),
    str: _Reader(str, "text"),
    tuple[int, int]: _Reader(_read_range, "START:END, end exclusive"),
}
