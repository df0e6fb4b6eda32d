"""Options: the fields of a frozen dataclass, their types, and how a value is read from text and written back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .bounds import Bounds

BARE = re.compile(r"[A-Za-z0-9_.:+/-]+")
NONE = "none"


def option(
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    *,
    replaces: str | None = None,
    only_with: tuple[str, Any] | None = None,
    **bounds: Any,
) -> Any:
    """A field of a pass or an exporter that is one of its options.

    Args:
        default: the value when the text does not name the option.
        help: one line for the user.
        choices: the values that are allowed, when they can be listed.
        replaces: the option that has no effect beside this one, when this one is not at its default.
        only_with: the option beside which this one has an effect, and its value then.
        bounds: the numbers that are allowed, ``at_least``, ``above``, ``at_most``, ``below``, and a ``hint`` for who
            gives another one: the fields of :class:`.bounds.Bounds`.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "bounds": Bounds(**bounds) if bounds else None,
        "replaces": replaces,
        "only_with": only_with,
    }
    return dataclasses.field(default=default, metadata=metadata)


def seed_option(default: int | None, help: str) -> Any:
    """An option for the seed of a random generator: numbers that both torch and NumPy take."""
    return option(default, help, at_least=0, below=2**63)


@dataclass(frozen=True)
class Option:
    """One option of a pass or an exporter, as declared by a field of its dataclass.

    Attributes:
        name: as written in the text.
        type: ``int``, ``float``, either of them ``| Literal["auto"]``, ``bool``, ``str``, or ``tuple[int, int]`` for a
            range ``START:END``, end exclusive.
        optional: whether ``none`` is a value.
        default: the value when the text is silent.
        choices: the allowed values when they can be listed.
        help: one line.
        replaces, only_with: as in :func:`option`.
        bounds: the numbers that are allowed, of those of the type.
    """

    name: str
    type: Any
    optional: bool
    default: Any
    choices: tuple[Any, ...] | None
    help: str
    replaces: str | None = None
    only_with: tuple[str, Any] | None = None
    bounds: Bounds | None = None

    @property
    def allowed(self) -> str:
        """As :attr:`wants`, with the bounds, as text for an error."""
        return self.wants if self.bounds is None or self.choices else f"{self.wants}; {self.bounds.advice}"

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


def word(text: str) -> str:
    """A value as the text of a call has it: in quotes where it needs them."""
    return text if BARE.fullmatch(text) else json.dumps(text)


def options_of(options_class: type[Any]) -> tuple[Option, ...]:
    """The options that a dataclass declares, in the order of its fields.

    Raises:
        TypeError: when a field has a type that text cannot express; a mistake of the class, not of a user.
    """
    kind: Any = options_class  # mypy doubts that a type is hashable
    return _declared(kind)


@functools.cache
def _declared(options_class: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(options_class)
    return tuple(
        _option(options_class, part, hints[part.name]) for part in dataclasses.fields(options_class) if part.init
    )


def replacing(holder: Any, name: str) -> Option | None:
    """The option of an instance that leaves another one without effect; None when that one has its effect."""
    return next(
        (o for o in options_of(type(holder)) if o.replaces == name and getattr(holder, o.name) != o.default), None
    )


def has_effect(holder: Any, option: Option) -> bool:
    """Whether an option of an instance does anything beside the others."""
    if option.only_with is not None:
        name, wanted = option.only_with
        if getattr(holder, name) != wanted:
            return False
    return replacing(holder, option.name) is None


def _option(options_class: type[Any], part: dataclasses.Field[Any], hint: Any) -> Option:
    type_, optional, choices = _simplify(hint)
    if type_ not in _READERS:
        raise TypeError(f"{options_class.__name__}.{part.name}: pipeline text has no form for {hint}")
    choices = part.metadata.get("choices") or choices
    given = {name: part.metadata.get(name) for name in ("replaces", "only_with", "bounds")}
    return Option(part.name, type_, optional, part.default, choices, part.metadata.get("help", ""), **given)


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
    if start < 0 or end == 0 or 0 < end <= start:
        raise ValueError(text)
    return start, end


_READERS: dict[Any, _Reader] = {
    int: _Reader(int, "integer"),
    int | typing.Literal["auto"]: _Reader(lambda text: text if text == "auto" else int(text), "integer | auto"),
    float: _Reader(_read_float, "number"),
    float | typing.Literal["auto"]: _Reader(
        lambda text: text if text == "auto" else _read_float(text), "number | auto"
    ),
    bool: _Reader(_read_bool, "true | false"),
    str: _Reader(str, "text"),
    tuple[int, int]: _Reader(_read_range, "START:END, end exclusive"),
}
