"""Fingerprints of calibration and training texts: hashes of their passages, without the text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...ir.errors import RequestError
from ...runtime.model.training_rows import ExampleRows
from ...runtime.place.choices import AUTO
from .corpus import Text

Hashes = npt.NDArray[np.uint64]

PASSAGE = 100
"""Characters in a passage, without white space. A window holds several passages, and two texts rarely share one by
chance (test and training parts of WikiText-2: one in 32,000; of TinyStories: none)."""

SHARED = 2
"""Number of shared passages that counts as overlap."""

READ_AT_ONCE = 128
"""Tokens in the pieces of a text that is read as a whole."""

KEPT = 4096
"""Largest number of stored passages of one text; of a longer text, every n-th passage is stored."""


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a text that was read.

    Attributes:
        read_as: ``calibration`` or ``recovery``.
        name: name of the text, without its directory.
        pieces: number of windows or rows that were read.
        passages: hashes of passages, ascending.
        read_from: what else is to be known of where the text came from: format, field, split, rows left out as null.
    """

    read_as: str
    name: str
    pieces: int
    passages: Hashes
    read_from: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fingerprint as JSON data; the hashes are base64 of little-endian 64-bit integers."""
        packed = base64.b64encode(self.passages.astype("<u8").tobytes()).decode("ascii")
        told = {"read_as": self.read_as, "name": self.name, "pieces": self.pieces, "passages": packed}
        return {**told, "read_from": dict(self.read_from)} if self.read_from else told

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of :meth:`to_json`.

        Raises:
            RequestError: for damaged data.
        """
        try:
            passages = np.frombuffer(base64.b64decode(data["passages"], validate=True), dtype="<u8").astype(np.uint64)
            return cls(str(data["read_as"]), str(data["name"]), int(data["pieces"]), passages)
        except (KeyError, TypeError, ValueError) as error:
            message = f"the record of a text that was read is damaged: {error!r}"
            raise RequestError(message, "write the artifact again") from error


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
        hashes = np.unique(np.concatenate([found for text, pieces in read for found in _passages(text, pieces)]))
        if len(hashes) > KEPT:
            hashes = hashes[np.linspace(0, len(hashes) - 1, KEPT).round().astype(int)]
        return Fingerprint(read_as, name, sum(len(pieces) for _, pieces in read), hashes, self.text.read_from)


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


def _passages(text: Text, pieces: Pieces) -> Iterator[Hashes]:
    found = (np.frombuffer(piece, dtype="<i4").tolist() for piece in pieces)
    return (_apart(piece) for piece in _plain(found, text))


@dataclass(frozen=True)
class Overlap:
    """The overlap of two texts.

    Attributes:
        passages: number of stored passages that the other text shares.
        windows: number of windows of the other text that hold a shared passage, or the end of one.
        example: one shared passage, without white space.
    """

    passages: int
    windows: int
    example: str


def overlap(known: Hashes, windows: torch.Tensor, text: Text) -> Overlap | None:
    """The overlap of a text with one that was read before; None if they share no more than chance explains.

    Args:
        known: passage hashes of the text that was read.
        windows: windows to read of the other text, int64 ``[N, L]``.
        text: the other text.
    """
    pieces = list(_plain(windows.tolist(), text))
    hashes = _sliding("".join(pieces))
    found = np.flatnonzero(np.isin(hashes, known))
    passages = len(np.unique(hashes[found]))
    if passages < SHARED:
        return None
    ends = np.cumsum([len(piece) for piece in pieces])
    holding = np.unique(np.searchsorted(ends, found + PASSAGE - 1, side="right"))
    first = int(found[0])
    return Overlap(passages, len(holding), "".join(pieces)[first : first + PASSAGE])


def _plain(pieces: Iterable[Sequence[int]], text: Text) -> Iterator[str]:
    """Token ids decoded to text, in lower case and without white space, which differ between tokenizers."""
    for piece in pieces:
        yield "".join(text.decode(piece).split()).casefold()


def _apart(piece: str) -> Hashes:
    """Hashes of the adjacent passages of a piece, from its start."""
    return _sliding(piece)[::PASSAGE]


def _sliding(piece: str) -> Hashes:
    """Hashes of all passages of a piece, one for every start position: a polynomial in 64 bits."""
    codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    if len(codes) < PASSAGE:
        return np.empty(0, dtype=np.uint64)
    mixed = (codes + _ODD) * _ODD
    mixed ^= mixed >> np.uint64(29)
    found = np.zeros(len(codes) - PASSAGE + 1, dtype=np.uint64)
    for place in range(PASSAGE):
        found = found * _BASE + mixed[place : place + len(found)]
    return found


_ODD, _BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
"""Constants of SplitMix64; products wrap around."""
