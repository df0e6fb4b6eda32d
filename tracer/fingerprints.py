"""Which text a model was calibrated or trained on, remembered without the text: hashes of its passages."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..ir.errors import RequestError
from .text import Text

Hashes = npt.NDArray[np.uint64]

PASSAGE = 100
"""Characters of a passage, white space not counted: short enough that one window holds several, long enough that two
texts hardly share one by chance (WikiText-2's test and training parts: one in 32,000; TinyStories': none)."""

SHARED = 2
"""How many passages two texts must share before it is no chance."""

KEPT = 4096
"""The most passages of one text that are remembered; of a longer one every so many."""


@dataclass(frozen=True)
class Fingerprint:
    """A text that was read.

    Attributes:
        read_as: ``calibration`` or ``recovery``.
        name: of the text, without its folder.
        pieces: windows or rows that were read.
        passages: hashes, ascending.
    """

    read_as: str
    name: str
    pieces: int
    passages: Hashes

    def to_json(self) -> dict[str, Any]:
        """As JSON data: the hashes as base64 of little-endian 64-bit numbers."""
        packed = base64.b64encode(self.passages.astype("<u8").tobytes()).decode("ascii")
        return {"read_as": self.read_as, "name": self.name, "pieces": self.pieces, "passages": packed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """What :meth:`to_json` wrote.

        Raises:
            RequestError: for anything else.
        """
        try:
            passages = np.frombuffer(base64.b64decode(data["passages"], validate=True), dtype="<u8").astype(np.uint64)
            return cls(str(data["read_as"]), str(data["name"]), int(data["pieces"]), passages)
        except (KeyError, TypeError, ValueError) as error:
            message = f"the record of a text that was read is damaged: {error!r}"
            raise RequestError(message, "write the artifact again") from error


@dataclass
class Noted:
    """A text that remembers what was read of it; the passes' ``Corpus``, with rows.

    Attributes:
        text: what is read.
    """

    text: Text
    _pieces: dict[bytes, None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The text's."""
        return self.text.name

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """What was read, in order, each once."""
        return tuple(self._pieces)

    def remember(self, pieces: Iterable[bytes]) -> None:
        """Count :attr:`pieces` of a run that this one goes on from as read."""
        self._pieces.update(dict.fromkeys(pieces))

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """As :meth:`Text.windows`."""
        found = self.text.windows(length, count, seed)
        self._note(found.tolist())
        return found

    def examples(self, length: int) -> list[dict[str, list[int]]]:
        """As :meth:`Text.examples`."""
        found = self.text.examples(length)
        self._note(example["input_ids"] for example in found)
        return found

    def _note(self, pieces: Iterable[Sequence[int]]) -> None:
        self._pieces.update((np.asarray(piece, dtype="<i4").tobytes(), None) for piece in pieces)

    def fingerprint(self, read_as: str, name: str) -> Fingerprint | None:
        """Of what was read; None when nothing was."""
        if not self._pieces:
            return None
        pieces = (np.frombuffer(piece, dtype="<i4").tolist() for piece in self._pieces)
        hashes = np.unique(np.concatenate([_apart(piece) for piece in _plain(pieces, self.text)]))
        if len(hashes) > KEPT:
            hashes = hashes[np.linspace(0, len(hashes) - 1, KEPT).round().astype(int)]
        return Fingerprint(read_as, name, len(self._pieces), hashes)


@dataclass(frozen=True)
class Overlap:
    """What two texts share.

    Attributes:
        passages: how many of those that were remembered.
        windows: of the other text that hold one, or the end of one.
        example: one that is shared, white space left out.
    """

    passages: int
    windows: int
    example: str


def overlap(known: Hashes, windows: torch.Tensor, text: Text) -> Overlap | None:
    """What a text shares with one that was read before; None for less than two texts share by chance.

    Args:
        known: hashes of the one that was read.
        windows: what is to be read of the other, ``[N, L]`` int64.
        text: whose windows they are.
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
    """Pieces as text again, without white space and case, which tokenizers treat differently."""
    for piece in pieces:
        yield "".join(str(text.tokenizer.decode(list(piece), skip_special_tokens=True)).split()).casefold()


def _apart(piece: str) -> Hashes:
    """Hashes of the passages that stand side by side from the start of a piece."""
    return _sliding(piece)[::PASSAGE]


def _sliding(piece: str) -> Hashes:
    """Hashes of all passages of a piece, one for every place where one starts: a polynomial in 64 bits."""
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
"""Of SplitMix64; products wrap around."""
