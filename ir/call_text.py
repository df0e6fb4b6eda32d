"""Text that calls something with options: ``name{option=value,option=value}``, as pipelines and formats are written.

call  ::= name [ "{" [ name "=" value ("," name "=" value)* ] "}" ]
value ::= bare word | quoted string as in JSON
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .bounds import OptionError
from .errors import RequestError
from .options import BARE, Option, options_of, write_value
from .plugins import named_faults

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def is_name(text: object) -> bool:
    """Whether something can be the name of a call."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


class Checked(Protocol):
    """A frozen dataclass whose fields are options."""

    def check(self) -> None:
        """Refuse option values that make no sense, with a ``RequestError``."""


C = TypeVar("C", bound=Checked)


@dataclass(frozen=True)
class CallKind:
    """What a text calls, in the words of an error.

    Attributes:
        one, many: ``pass``, ``passes``.
        usage: how the text is written, as a hint.
        inside, beside: where an option value may stand: in the text, or with the values for all calls.
    """

    one: str
    many: str
    usage: str
    inside: str
    beside: str


@dataclass(frozen=True)
class Span:
    """A stretch of text, so that an error can point at it."""

    text: str
    start: int
    end: int

    def error(self, message: str, hint: str) -> RequestError:
        """An error: ``message``, below it the text, and carets under this part of it."""
        line = re.sub(r"\s", " ", self.text)
        carets = " " * self.start + "^" * max(1, self.end - self.start)
        return RequestError(f"{message}\n  {line}\n  {carets}", hint)


@dataclass(frozen=True)
class CallWord:
    """A name or a value, and its place in the text."""

    value: str
    span: Span
    quoted: bool = False


@dataclass(frozen=True)
class OptionCall:
    """One call as written: its name and settings, not yet checked against anything."""

    name: CallWord
    settings: tuple[tuple[CallWord, CallWord], ...]
    span: Span


class Scanner:
    """Reads text from left to right.

    Args:
        text: the whole of it.
        kind: what it calls.
    """

    def __init__(self, text: str, kind: CallKind) -> None:
        self.text = text
        self.kind = kind
        self.at = 0

    def call(self) -> OptionCall:
        """The call that comes next, up to its closing brace."""
        self._skip_space()
        start = self.at
        name = self._word(_NAME, f"the name of a {self.kind.one}", self.kind.usage)
        settings: list[tuple[CallWord, CallWord]] = []
        if self.take("{") and not self.take("}"):
            settings.append(self._setting())
            while self.take(","):
                settings.append(self._setting())
            if not self.take("}"):
                raise self._here().error("expected ',' or '}'", "options are written {name=value,name=value}")
        return OptionCall(name, tuple(settings), Span(self.text, start, self.at))

    def take(self, char: str) -> bool:
        """If ``char`` comes next, after any spaces, move past it and return True."""
        self._skip_space()
        found = self.text.startswith(char, self.at)
        self.at += found
        return found

    def end(self, expected: str, hint: str) -> None:
        """Refuse what is left of the text."""
        self._skip_space()
        if self.at < len(self.text):
            raise self._here().error(f"expected {expected}, found {self.text[self.at]!r}", hint)

    def _setting(self) -> tuple[CallWord, CallWord]:
        key = self._word(_NAME, "the name of an option", "options are written {name=value,name=value}")
        if not self.take("="):
            raise self._here().error(f"expected '=' after option {key.value!r}", f"write {key.value}=VALUE")
        return key, self._value(key.value)

    def _value(self, key: str) -> CallWord:
        self._skip_space()
        quoted = _QUOTED.match(self.text, self.at)
        if not quoted:
            return self._word(BARE, f"a value for {key!r}", 'a value with other characters goes in quotes: "a, b"')
        span = Span(self.text, self.at, quoted.end())
        try:
            value: str = json.loads(quoted.group())
        except ValueError:
            raise span.error("this is not a string", 'quote as JSON does: \\" and \\\\ for " and \\') from None
        self.at = quoted.end()
        return CallWord(value, span, quoted=True)

    def _word(self, pattern: re.Pattern[str], expected: str, hint: str) -> CallWord:
        self._skip_space()
        match = pattern.match(self.text, self.at)
        if not match:
            raise self._here().error(f"expected {expected}", hint)
        self.at = match.end()
        return CallWord(match.group(), Span(self.text, match.start(), match.end()))

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _here(self) -> Span:
        return Span(self.text, self.at, self.at + 1)


def bind(
    call: OptionCall,
    by_name: Mapping[str, type[C]],
    shared: Mapping[str, Any],
    kind: CallKind,
    defaults: Mapping[str, Any] | None = None,
) -> C:
    """What ``call`` names, with its options typed and checked.

    Args:
        call: as written.
        by_name: what there is.
        shared: values for the options of these names, where the class has them.
        kind: what is called.
        defaults: values for options of these names that neither the text nor ``shared`` gives.

    Raises:
        RequestError: an unknown name or option, a value that an option cannot have or that contradicts ``shared``.
    """
    found = by_name.get(call.name.value)
    if found is None:
        raise call.name.span.error(
            f"unknown {kind.one} {call.name.value!r}",
            did_you_mean(call.name.value, by_name) + f"{kind.many}: {', '.join(by_name)}",
        )
    options = {option.name: option for option in options_of(found)}
    values = _given(call, options, _shared_values(shared, options), kind)
    _take_out_replaced(call, options, values)
    bound = found(**_shared_values(defaults or {}, options) | values)
    try:
        with named_faults(found, f"the check of {kind.one} {call.name.value!r}"):
            bound.check()
    except RequestError as error:
        beside = {name: _beside(name, value).span for name, value in shared.items() if name in options}
        places = beside | {key.value: word.span for key, word in call.settings}
        at = places.get(error.option, call.span) if isinstance(error, OptionError) else call.span
        raise at.error(error.message, error.hint) from None
    return bound


def _given(call: OptionCall, options: Mapping[str, Option], values: dict[str, Any], kind: CallKind) -> dict[str, Any]:
    """The shared values together with those in the text of a call."""
    seen: set[str] = set()
    for key, word in call.settings:
        if key.value not in options:
            raise key.span.error(
                f"{kind.one} {call.name.value!r} has no option {key.value!r}", _options_hint(key, options, kind)
            )
        if key.value in seen:
            raise key.span.error(f"option {key.value!r} is given twice", "give it once")
        seen.add(key.value)
        value = _read(options[key.value], word)
        if values.get(key.value, value) != value:
            both = f"{key.value}={word.value} {kind.inside}, {key.value}={write_value(values[key.value])} {kind.beside}"
            raise word.span.error(f"two values for one option: {both}", "give one of the two")
        values[key.value] = value
    return values


def _take_out_replaced(call: OptionCall, options: Mapping[str, Option], values: dict[str, Any]) -> None:
    """Take a shared value out where the text of the call has an option that replaces it.

    Raises:
        RequestError: an option that would have no effect.
    """
    written = {key.value: word for key, word in call.settings}
    for option in options.values():
        value = values.get(option.name, option.default)
        other = option.replaces
        if other in values and value != option.default:
            if option.name in written and other not in written:
                del values[other]
                continue
            both = f"{other}={write_value(values[other])} has no effect beside {option.name}={write_value(value)}"
            raise written.get(other, call).span.error(both, "give one of the two")
        if option.only_with is not None and option.name in written:
            name, wanted = option.only_with
            if values.get(name, options[name].default) != wanted:
                raise written[option.name].span.error(
                    f"{option.name}={write_value(value)} has an effect only with {name}={write_value(wanted)}",
                    f"leave it out, or give {name}={write_value(wanted)} too",
                )


def having(name: str, by_name: Mapping[str, type[C]]) -> list[str]:
    """The names of what has an option of this name."""
    return [key for key, cls in by_name.items() if name in (option.name for option in options_of(cls))]


def _shared_values(shared: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """The shared options that are among ``options``, typed."""
    return {name: _read(options[name], _beside(name, value)) for name, value in shared.items() if name in options}


def _beside(name: str, value: Any) -> CallWord:
    """A shared value, as it is shown where it is wrong: ``ratio=1.5``."""
    text = value if isinstance(value, str) else write_value(value)
    source = f"{name}={text}"
    return CallWord(text, Span(source, len(name) + 1, len(source)))


def _read(option: Option, word: CallWord) -> Any:
    try:
        return option.read(word.value, quoted=word.quoted)
    except ValueError:
        near = did_you_mean(word.value, map(write_value, option.choices)) if option.choices else ""
        raise word.span.error(
            f"option {option.name!r} cannot be {word.value!r}", f"{near}allowed for {option.name}: {option.allowed}"
        ) from None


def _options_hint(key: CallWord, options: Mapping[str, Option], kind: CallKind) -> str:
    if not options:
        return f"this {kind.one} has no options"
    return did_you_mean(key.value, options) + "options: " + ", ".join(options)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """The start of a hint that names what was probably meant, with a space behind it; "" if nothing is near."""
    close = difflib.get_close_matches(name, list(candidates), n=2)
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""
