"""Pipeline text: ``taylor{variant=element1,ratio=0.25},lora{epochs=2}`` to passes and back.

pipeline ::= pass ("," pass)*
pass     ::= name [ "{" [ name "=" value ("," name "=" value)* ] "}" ]
value    ::= bare word | quoted string as in JSON
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.errors import RequestError
from .base import Pass
from .options import BARE, Option, options_of, write_value

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Span:
    """A part of the pipeline text, so that an error can point to it."""

    text: str
    start: int
    end: int

    def error(self, message: str, hint: str) -> RequestError:
        """An error: ``message``, below it the text, and carets under this part of it."""
        line = re.sub(r"\s", " ", self.text)
        carets = " " * self.start + "^" * max(1, self.end - self.start)
        return RequestError(f"{message}\n  {line}\n  {carets}", hint)


@dataclass(frozen=True)
class Word:
    """A name or a value, and its place in the text."""

    value: str
    span: Span
    quoted: bool = False


@dataclass(frozen=True)
class Call:
    """One pass as written: its name and settings, not checked yet."""

    name: Word
    settings: tuple[tuple[Word, Word], ...]
    span: Span


def parse_pipeline(
    text: str | Sequence[str], passes: Sequence[type[Pass]], shared: Mapping[str, Any] | None = None
) -> tuple[Pass, ...]:
    """The passes that pipeline text describes; their options are checked.

    Args:
        text: pipeline text; several texts run one after the other.
        passes: all known passes.
        shared: option values for every pass that has an option of that name; None means not given. At least one pass
            must have the option.

    Raises:
        RequestError: for an error in the text, an unknown pass or option, a value that is not allowed, a shared option
            that no pass has, or one that contradicts the text.
    """
    whole = text if isinstance(text, str) else ",".join(text)
    by_name = {cls.name: cls for cls in passes}
    given = {name: value for name, value in (shared or {}).items() if value is not None}
    calls = _Scanner(whole).pipeline()
    bound = tuple(_bind(call, by_name, given) for call in calls)
    _every_shared_option_lands(given, bound, passes)
    return bound


def print_pipeline(pipeline: Iterable[Pass], *, defaults: bool = False) -> str:
    """The shortest text that parses to ``pipeline``; with ``defaults``, a text with every option."""
    return ",".join(print_pass(step, defaults=defaults) for step in pipeline)


def print_pass(step: Pass, *, defaults: bool = False) -> str:
    """The text of one pass; options at their defaults are left out unless ``defaults``."""
    given = [
        f"{option.name}={write_value(getattr(step, option.name))}"
        for option in options_of(type(step))
        if defaults or getattr(step, option.name) != option.default
    ]
    return step.name + ("{" + ",".join(given) + "}" if given else "")


class _Scanner:
    """Reads pipeline text from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> list[Call]:
        calls = [self.call()]
        while self.take(","):
            calls.append(self.call())
        if self.at < len(self.text):
            raise self.here().error(
                f"expected ',' or the end of the pipeline, found {self.text[self.at]!r}",
                "passes are separated by commas: taylor{ratio=0.25},lora",
            )
        return calls

    def call(self) -> Call:
        self.skip_space()
        start = self.at
        name = self.word(_NAME, "the name of a pass", "a pipeline is pass,pass{option=value}; see `fxprune passes`")
        settings: list[tuple[Word, Word]] = []
        if self.take("{") and not self.take("}"):
            settings.append(self.setting())
            while self.take(","):
                settings.append(self.setting())
            if not self.take("}"):
                raise self.here().error("expected ',' or '}'", "options are written {name=value,name=value}")
        return Call(name, tuple(settings), Span(self.text, start, self.at))

    def setting(self) -> tuple[Word, Word]:
        key = self.word(_NAME, "the name of an option", "options are written {name=value,name=value}")
        if not self.take("="):
            raise self.here().error(f"expected '=' after option {key.value!r}", f"write {key.value}=VALUE")
        return key, self.value(key.value)

    def value(self, key: str) -> Word:
        self.skip_space()
        quoted = _QUOTED.match(self.text, self.at)
        if not quoted:
            return self.word(BARE, f"a value for {key!r}", 'a value with other characters goes in quotes: "a, b"')
        span = Span(self.text, self.at, quoted.end())
        try:
            value: str = json.loads(quoted.group())
        except ValueError:
            raise span.error("this is not a string", 'quote as JSON does: \\" and \\\\ for " and \\') from None
        self.at = quoted.end()
        return Word(value, span, quoted=True)

    def word(self, pattern: re.Pattern[str], expected: str, hint: str) -> Word:
        self.skip_space()
        match = pattern.match(self.text, self.at)
        if not match:
            raise self.here().error(f"expected {expected}", hint)
        self.at = match.end()
        return Word(match.group(), Span(self.text, match.start(), match.end()))

    def take(self, char: str) -> bool:
        """If ``char`` comes next, after any spaces, move past it and return True."""
        self.skip_space()
        found = self.text.startswith(char, self.at)
        self.at += found
        return found

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def here(self) -> Span:
        return Span(self.text, self.at, self.at + 1)


def _bind(call: Call, by_name: Mapping[str, type[Pass]], shared: Mapping[str, Any]) -> Pass:
    """The pass that ``call`` names, with option values of the right types."""
    pass_class = by_name.get(call.name.value)
    if pass_class is None:
        raise call.name.span.error(
            f"unknown pass {call.name.value!r}", _near(call.name.value, by_name) + f"passes: {', '.join(by_name)}"
        )
    options = {option.name: option for option in options_of(pass_class)}
    values = _shared_values(shared, options)
    seen: set[str] = set()
    for key, word in call.settings:
        if key.value not in options:
            raise key.span.error(f"pass {call.name.value!r} has no option {key.value!r}", _options_hint(key, options))
        if key.value in seen:
            raise key.span.error(f"option {key.value!r} is given twice", "give it once")
        seen.add(key.value)
        value = _read(options[key.value], word)
        if values.get(key.value, value) != value:
            both = (
                f"{key.value}={word.value} in the pipeline, {key.value}={write_value(values[key.value])} for all passes"
            )
            raise word.span.error(f"two values for one option: {both}", "give one of the two")
        values[key.value] = value
    step = pass_class(**values)
    try:
        step.check()
    except RequestError as error:
        raise call.span.error(error.message, error.hint) from None
    return step


def _shared_values(shared: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """The shared options that this pass has, with values of the right types."""
    values = {}
    for name, value in shared.items():
        if name in options:
            text = value if isinstance(value, str) else write_value(value)
            source = f"{name}={text}"
            values[name] = _read(options[name], Word(text, Span(source, len(name) + 1, len(source))))
    return values


def _read(option: Option, word: Word) -> Any:
    try:
        return option.read(word.value, quoted=word.quoted)
    except ValueError:
        near = _near(word.value, map(write_value, option.choices)) if option.choices else ""
        raise word.span.error(
            f"option {option.name!r} cannot be {word.value!r}", f"{near}allowed for {option.name}: {option.wants}"
        ) from None


def _every_shared_option_lands(shared: Mapping[str, Any], bound: Sequence[Pass], passes: Sequence[type[Pass]]) -> None:
    for name in shared:
        if any(name in (option.name for option in options_of(type(step))) for step in bound):
            continue
        takers = [cls.name for cls in passes if name in (option.name for option in options_of(cls))]
        raise RequestError(
            f"no pass of {print_pipeline(bound)!r} has an option {name!r}",
            f"passes with this option: {', '.join(takers)}" if takers else "see `fxprune passes`",
        )


def _options_hint(key: Word, options: Mapping[str, Option]) -> str:
    if not options:
        return "this pass has no options"
    return _near(key.value, options) + "options: " + ", ".join(options)


def _near(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=2)
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""
