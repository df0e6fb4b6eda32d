"""Fingerprints of calibration and training texts: hashes of their passages, without the text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...ir.errors import RequestError
from ...runtime.model.training_rows import ExampleRows
from ...runtime.place.choices import AUTO
from .corpus import Text
from .passages import PASSAGE, Hashes, Passages, plain

READ_AT_ONCE = 128
"""Tokens in the pieces of a text that is read as a whole."""

LOOKED_THROUGH = 1 << 19
"""Characters of a text that are looked through for what its rows share."""


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a text that was read.

    Attributes:
        read_as: ``calibration`` or ``recovery``.
        name: name of the text, without its directory.
        pieces: number of windows or rows that were read.
        passages: hashes of what was read; those that the text does not repeat.
        total: how many there were before they were thinned out.
        read_from: what else is to be known of where the text came from: format, field, split, rows left out as empty.
    """

    read_as: str
    name: str
    pieces: int
    passages: Passages
    total: int
    read_from: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fingerprint as JSON data; the hashes are base64 of little-endian 64-bit integers."""
        told = {"read_as": self.read_as, "name": self.name, "pieces": self.pieces}
        told["passages"] = _packed(self.passages.whole)
        if len(self.passages.short):
            told["short"] = _packed(self.passages.short)
        if self.total != len(self.passages):
            told["total"] = self.total
        return {**told, "read_from": dict(self.read_from)} if self.read_from else told

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of :meth:`to_json`; records of earlier versions have no short passages.

        Raises:
            RequestError: for damaged data.
        """
        try:
            passages = Passages(_unpacked(data["passages"]), _unpacked(data.get("short", "")))
            if not all(0 < length <= PASSAGE for length, _ in passages.by_length()):
                raise ValueError("a short passage that is longer than a whole one")
            total = max(len(passages), int(data.get("total", 0)))
            return cls(str(data["read_as"]), str(data["name"]), int(data["pieces"]), passages, total)
        except (KeyError, TypeError, ValueError) as error:
            message = f"the record of a text that was read is damaged: {error!r}"
            raise RequestError(message, "write the artifact again") from error


def _packed(hashes: Hashes) -> str:
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode("ascii")


def _unpacked(text: str) -> Hashes:
    return np.unique(np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8").astype(np.uint64))


Pieces = dict[bytes, None]

READ_BEFORE = "before_"
"""In what a run saves of a text: what was read of it with the source's tokenizer, where that is another one now."""


@dataclass
class TrackedText:
    """A tracked text: records what was read of it. Implements the passes' ``Corpus``, with rows.

    Attributes:
        text: the text.
    """

    text: Text
    _pieces: Pieces = field(default_factory=dict)
    _before: tuple[Text, Pieces] | None = None
    _ahead: Pieces = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the text."""
        return self.text.name

    @property
    def pieces_read(self) -> dict[str, npt.NDArray[np.int64]]:
        """The windows and rows that were read, in order, each once: their ``tokens`` one after the other, and the
        ``lengths`` in tokens."""
        found = _stored(self._pieces)
        if self._before is not None:
            found |= {f"{READ_BEFORE}{name}": numbers for name, numbers in _stored(self._before[1]).items()}
        return found

    def remember(self, pieces: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Also count as read what :attr:`pieces_read` gave in a run that this run resumes.

        Raises:
            ValueError: for lengths that do not add up.
        """
        before = {
            name.removeprefix(READ_BEFORE): numbers for name, numbers in pieces.items() if name.startswith(READ_BEFORE)
        }
        if before:
            self._ahead = _restored(pieces)
        self._pieces.update(_restored(before or pieces))

    def renumber(self, tokenizer: Any, vocabulary: int) -> None:
        """From now on, read the text with another tokenizer."""
        self._before = self.text, self._pieces
        self.text, self._pieces = self.text.on(tokenizer, vocabulary), self._ahead

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """As :meth:`Text.windows`, recorded as read."""
        found = self.text.windows(length, count, seed)
        self._note(found.tolist())
        return found

    def tokens(self) -> torch.Tensor:
        """As :meth:`Text.tokens`, recorded as read."""
        found = self.text.tokens()
        self._note(piece.tolist() for piece in found.split(READ_AT_ONCE))
        return found

    def examples(self, length: int, train_on: str = AUTO) -> ExampleRows:
        """As :meth:`Text.examples`, recorded as read."""
        found = self.text.examples(length, train_on)
        self._note(example["input_ids"] for example in found)
        return found

    def _note(self, pieces: Iterable[Sequence[int] | npt.NDArray[np.int64]]) -> None:
        self._pieces.update((np.asarray(piece, dtype="<i4").tobytes(), None) for piece in pieces)

    def fingerprint(self, read_as: str, name: str) -> Fingerprint | None:
        """The fingerprint of what was read; None when nothing was read."""
        read = [part for part in (self._before, (self.text, self._pieces)) if part is not None and part[1]]
        if not read:
            return None
        found = reduce(or_, (_passages(text, pieces) for text, pieces in read))
        count = sum(len(pieces) for _, pieces in read)
        return Fingerprint(read_as, name, count, found.thinned(), len(found), self.text.read_from)


def _stored(pieces: Pieces) -> dict[str, npt.NDArray[np.int64]]:
    found = [np.frombuffer(piece, dtype="<i4").astype(np.int64) for piece in pieces]
    empty = np.empty(0, dtype=np.int64)
    lengths = np.array([len(piece) for piece in found], dtype=np.int64)
    return {"tokens": np.concatenate([empty, *found]), "lengths": lengths}


def _restored(stored: Mapping[str, npt.NDArray[np.int64]]) -> Pieces:
    """The inverse of :func:`_stored`.

    Raises:
        ValueError: for lengths that do not add up.
    """
    tokens, lengths = stored["tokens"], stored["lengths"]
    if lengths.sum() != len(tokens):
        raise ValueError("the lengths of the texts that were read do not add up")
    found = np.split(tokens, lengths.cumsum()[:-1]) if len(lengths) else ()
    return {np.asarray(piece, dtype="<i4").tobytes(): None for piece in found}


def _passages(text: Text, pieces: Pieces) -> Passages:
    decoded = (plain(text.decode(np.frombuffer(piece, dtype="<i4").tolist())) for piece in pieces)
    # A piece may begin or end inside a character, which is another one where a text is divided otherwise.
    found = Passages.of(piece.strip("\N{REPLACEMENT CHARACTER}") for piece in decoded)
    return found.without_repeated(plain(text.sample(LOOKED_THROUGH)))
