"""Which tokens are of a script, by the property Script of Unicode (Unicode Standard Annex 24)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence

import regex

from ...ir.errors import RequestError

OF_ALL_SCRIPTS = ("Common", "Inherited")
"""Scripts of what all languages write: digits, punctuation, spaces, signs, emoji; and marks on letters of any."""

SURROGATES = range(0xD800, 0xE000)


class Scripts:
    """The characters of some scripts, with those that all scripts share.

    Args:
        names: of scripts, as Unicode calls them, in small or capital letters: ``latin``, ``cyrillic``, ``han``.

    Raises:
        RequestError: Unicode has no script of that name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        for name in self.names:
            try:
                if not name.replace("_", "").isalpha():
                    raise regex.error(name)
                regex.compile(rf"\p{{Script={name}}}")
            except regex.error:
                raise RequestError(
                    f"languages: {name!r} is no script of Unicode",
                    "name scripts, joined by +, such as latin, latin+greek, cyrillic, arabic, han+hiragana+katakana",
                ) from None
        self.letters = regex.compile(_one_of(self.names))

    def hold(self, token: bytes) -> bool:
        """Whether all characters of a token are among them. Bytes at its ends that are a part of a character count as
        one that is, if some character among them has that part."""
        head = next((at for at, byte in enumerate(token) if not 0x80 <= byte < 0xC0), len(token))
        whole, tail = _whole(token[head:])
        parts = [part for part in (token[:head], tail) if part]
        return all(letter in self._all for letter in whole) and all(part in self._parts for part in parts)

    @functools.cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(regex.findall(_one_of((*self.names, *OF_ALL_SCRIPTS)), _everything()))

    @functools.cached_property
    def _parts(self) -> frozenset[bytes]:
        coded = (letter.encode() for letter in self._all)
        return frozenset(code[i:j] for code in coded for i in range(len(code)) for j in range(i + 1, len(code) + 1))

    def write(self, token: bytes) -> bool:
        """Whether a token has a character of one of the scripts themselves."""
        return self.letters.search(token.decode(errors="ignore")) is not None


def _one_of(names: Iterable[str]) -> str:
    """What matches a character of one of these scripts."""
    return "[" + "".join(rf"\p{{Script={name}}}" for name in names) + "]"


def _whole(token: bytes) -> tuple[str, bytes]:
    """The characters of bytes that begin with a whole one, and what is left at their end."""
    for cut in range(min(4, len(token) + 1)):
        try:
            return token[: len(token) - cut].decode(), token[len(token) - cut :]
        except UnicodeDecodeError:
            continue
    return "", token


@functools.cache
def _everything() -> str:
    return "".join(chr(code) for code in range(sys.maxunicode + 1) if code not in SURROGATES)


def script_names(text: str) -> Sequence[str]:
    """The names in ``latin+greek``."""
    return text.split("+")
