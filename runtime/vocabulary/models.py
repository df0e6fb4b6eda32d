"""The models of the library ``tokenizers``, as the data of a ``tokenizer.json``: what each needs of its tokens.

All of them write a word with the tokens that they have. A model without some of its tokens writes a word as before
where it used none of those, if three things hold: what the word was made from on the way stays too (byte-pair), scores
that are derived from all tokens stay the same (unigram), and a piece that cannot be written in another way stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from ...ir.errors import RequestError

SPACE_SIGN = "▁"
"""What SentencePiece writes for a space; its decoder knows it as a token only."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""Tokens for bytes, which stand for characters that have none."""

BYTE_COUNT = 256

Ids = Mapping[str, int]


class TokenModel(Protocol):
    """How words become tokens."""

    @property
    def ids(self) -> Ids:
        """Every token that words can become -> its id."""

    def always(self) -> set[str]:
        """The tokens without which some text could not be written at all, or would be written otherwise."""

    def parts(self, token: str) -> set[str]:
        """The other tokens that a token is made from."""

    def text(self, token: str) -> bytes:
        """What a token stands for, in UTF-8; not always whole characters."""

    def cut(self, ids: Ids) -> dict[str, Any]:
        """The model with these tokens, and their new ids, as data."""


def _pieces(token: str, prefix: str, suffix: str) -> list[str]:
    """The symbols that a word begins as, of which a token is made: characters, marked where a word goes on or ends."""
    goes_on = bool(prefix) and token.startswith(prefix)
    ends = bool(suffix) and token.endswith(suffix) and token != suffix
    bare = token[len(prefix) if goes_on else 0 : len(token) - len(suffix) if ends else None]
    found = [prefix + letter if at or goes_on else letter for at, letter in enumerate(bare)]
    return [*found[:-1], found[-1] + suffix] if ends and found else found


def _fall_back(ids: Ids, *, wanted: bool) -> set[str]:
    """The tokens for bytes, if there is one for each."""
    held = {token for token in ids if BYTE_TOKEN.fullmatch(token)} if wanted else set()
    return held if len(held) == BYTE_COUNT else set()


def _irreplaceable(ids: Ids, prefix: str = "", suffix: str = "") -> Iterator[str]:
    """Tokens of one symbol, and those that hold a symbol which is no token."""
    for token in ids:
        symbols = _pieces(token, prefix, suffix)
        if len(symbols) <= 1 or any(symbol not in ids for symbol in symbols):
            yield token


@dataclass(frozen=True)
class BytePairs:
    """Byte-pair encoding, over bytes or over characters (Sennrich et al., arXiv 1508.07909).

    Attributes:
        data: the model.
        byte_level: whether its characters stand for bytes, as in GPT-2.
    """

    data: Mapping[str, Any]
    byte_level: bool

    @property
    def ids(self) -> Ids:
        found: Ids = self.data["vocab"]
        return found

    @property
    def _marks(self) -> tuple[str, str]:
        return self.data.get("continuing_subword_prefix") or "", self.data.get("end_of_word_suffix") or ""

    @cached_property
    def _merges(self) -> list[tuple[str, str]]:
        return [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in self.data["merges"]]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in reversed(list(enumerate(self._merges)))}

    def always(self) -> set[str]:
        unknown = {self.data["unk_token"]} if self.data.get("unk_token") else set()
        if held := _fall_back(self.ids, wanted=bool(self.data.get("byte_fallback"))):
            return (held | unknown | {SPACE_SIGN}) & self.ids.keys()
        return (set(_irreplaceable(self.ids, *self._marks)) | unknown) & self.ids.keys()

    def parts(self, token: str) -> set[str]:
        """Every symbol on the way to a token. Within a longer word it is made in the same way: no merge across its ends
        happened, and those inside go by rank."""
        symbols = _pieces(token, *self._marks)
        seen = set(symbols)
        while len(symbols) > 1:
            ranked = [(rank, at) for at in range(len(symbols) - 1) if (rank := self._rank(symbols, at)) is not None]
            if not ranked:
                break
            at = min(ranked)[1]
            symbols[at : at + 2] = [self._joined(symbols[at], symbols[at + 1])]
            seen.add(symbols[at])
        return (seen - {token}) & self.ids.keys() if symbols == [token] else set()

    def _rank(self, symbols: list[str], at: int) -> int | None:
        return self._ranks.get((symbols[at], symbols[at + 1]))

    def _joined(self, left: str, right: str) -> str:
        return left + right[len(self._marks[0]) :]

    def text(self, token: str) -> bytes:
        prefix, suffix = self._marks
        bare = "".join(_pieces(token, prefix, suffix)).replace(prefix, "") if prefix else token
        bare = bare.removesuffix(suffix) if suffix else bare
        return _written_bytes(bare) if self.byte_level else bare.replace(SPACE_SIGN, " ").encode()

    def cut(self, ids: Ids) -> dict[str, Any]:
        merges = [
            given
            for given, (left, right) in zip(self.data["merges"], self._merges, strict=True)
            if left in ids and right in ids and self._joined(left, right) in ids
        ]
        return {**self.data, "vocab": dict(ids), "merges": merges}


@dataclass(frozen=True)
class Unigram:
    """The most likely pieces of a word, each with its own likelihood (Kudo, arXiv 1804.10959).

    Attributes:
        data: the model.
    """

    data: Mapping[str, Any]

    @cached_property
    def ids(self) -> Ids:
        return {token: number for number, (token, _) in enumerate(self.data["vocab"])}

    def always(self) -> set[str]:
        """An unknown character is as likely as the least likely token, less a constant: that token stays too."""
        scored = self.data["vocab"]
        unknown = {} if self.data.get("unk_id") is None else {scored[self.data["unk_id"]][0]}
        least = min(scored, key=lambda entry: entry[1])[0]
        if held := _fall_back(self.ids, wanted=bool(self.data.get("byte_fallback"))):
            return (held | {least, SPACE_SIGN, *unknown}) & self.ids.keys()
        return {*_irreplaceable(self.ids), least, *unknown}

    def parts(self, token: str) -> set[str]:
        del token
        return set()

    def text(self, token: str) -> bytes:
        return token.replace(SPACE_SIGN, " ").encode()

    def cut(self, ids: Ids) -> dict[str, Any]:
        scores = {token: score for token, score in self.data["vocab"]}
        ordered = sorted(ids, key=lambda token: ids[token])
        if [ids[token] for token in ordered] != list(range(len(ordered))):
            raise RequestError(
                "ids of other tokens stand between those of the pieces of this unigram tokenizer, which counts them",
                "keep all tokens",
            )
        unknown = self.data.get("unk_id")
        number = None if unknown is None else ids[self.data["vocab"][unknown][0]]
        return {**self.data, "vocab": [[token, scores[token]] for token in ordered], "unk_id": number}


@dataclass(frozen=True)
class WordPieces:
    """The longest piece first, as in BERT (Schuster and Nakajima, ICASSP 2012).

    Attributes:
        data: the model.
    """

    data: Mapping[str, Any]

    @property
    def ids(self) -> Ids:
        found: Ids = self.data["vocab"]
        return found

    def always(self) -> set[str]:
        return {*_irreplaceable(self.ids, self.data["continuing_subword_prefix"]), self.data["unk_token"]}

    def parts(self, token: str) -> set[str]:
        del token
        return set()

    def text(self, token: str) -> bytes:
        return token.removeprefix(self.data["continuing_subword_prefix"]).encode()

    def cut(self, ids: Ids) -> dict[str, Any]:
        return {**self.data, "vocab": dict(ids)}


def token_model(data: Mapping[str, Any], *, byte_level: bool) -> TokenModel:
    """The model of a tokenizer.

    Args:
        data: under ``model`` in ``tokenizer.json``.
        byte_level: whether its characters stand for bytes.

    Raises:
        RequestError: it is of a kind that is not known, or of one that has no smaller tokens to write a word with.
    """
    kind = data.get("type")
    if kind == "BPE":
        return BytePairs(data, byte_level)
    if kind == "Unigram":
        return Unigram(data)
    if kind == "WordPiece":
        return WordPieces(data)
    if kind == "WordLevel":
        raise RequestError(
            "the tokenizer is of the kind WordLevel: a word whose token went could not be written with others",
            "leave the pass vocabulary out for this model",
        )
    raise RequestError(
        f"the tokenizer is of the kind {kind!r}, of which vocabulary knows nothing",
        "it knows BPE, Unigram and WordPiece",
    )


def _written_bytes(text: str) -> bytes:
    """The bytes that the characters of a byte-level token stand for; a character that stands for none is itself."""
    return b"".join(bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in text)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones for themselves, the others in order from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTE_COUNT) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(BYTE_COUNT + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_letters()
