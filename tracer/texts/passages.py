"""Passages of a text and their hashes: stretches in lower case and without white space, which tokenizers change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

PASSAGE = 100
"""Characters in a passage, without white space. A window holds several passages, and two texts rarely share one by
chance (test and training parts of WikiText-2: one in 32,000; of TinyStories: none)."""

SHORTEST = 32
"""The fewest characters of a short passage. What is shorter is what anybody says: of the sentences of TinyStories with
12 to 16 characters, the other part has 9%; of those with more than this, one in 2,800."""

SHARED = 2
"""Number of shared passages that counts as overlap."""

KEPT = 4096
"""Largest number of stored passages of one text; of a longer text, every n-th passage is stored."""

ONCE = 50
"""A text of which fewer than one in so many passages is there once repeats itself as a whole."""

_LENGTH = np.uint64(127)
"""The bits of the hash of a short passage that hold its number of characters instead."""


@dataclass(frozen=True)
class Passages:
    """Hashes of passages.

    Attributes:
        whole: of passages of :data:`PASSAGE` characters, ascending.
        short: of passages with fewer characters, ascending; each hash holds their number.
    """

    whole: Hashes
    short: Hashes

    @classmethod
    def of(cls, pieces: Iterable[str]) -> Passages:
        """The adjacent passages of every piece from its start. What is left behind them, or the piece where it is too
        short for one, is a shorter passage.

        Args:
            pieces: from :func:`plain`.
        """
        whole, short = [_NO_HASHES], [_NO_HASHES]
        for piece in pieces:
            if len(piece) < SHORTEST:
                continue
            sliding, left = Sliding(piece), len(piece) % PASSAGE
            whole.append(sliding.hashes(PASSAGE)[::PASSAGE])
            if left >= SHORTEST:
                short.append(sliding.hashes(left)[-1:])
        return cls(np.unique(np.concatenate(whole)), np.unique(np.concatenate(short)))

    def __len__(self) -> int:
        return len(self.whole) + len(self.short)

    def __or__(self, other: Passages) -> Passages:
        return Passages(np.union1d(self.whole, other.whole), np.union1d(self.short, other.short))

    def by_length(self) -> Iterator[tuple[int, Hashes]]:
        """Numbers of characters with the hashes of the passages that have as many."""
        lengths = self.short & _LENGTH
        for length in np.unique(lengths):
            yield int(length), self.short[lengths == length]
        if len(self.whole):
            yield PASSAGE, self.whole

    def thinned(self) -> Passages:
        """At most :data:`KEPT` of them, evenly."""
        if len(self) <= KEPT:
            return self
        whole = round(KEPT * len(self.whole) / len(self))
        return Passages(_evenly(self.whole, whole), _evenly(self.short, KEPT - whole))

    def without_repeated(self, text: str) -> Passages:
        """Those that a text does not hold twice: what its rows share, such as a prompt that begins each of them, is in
        other texts of the kind too. All of them, where the text repeats itself as a whole.

        Args:
            text: some of the text that they are from, from :func:`plain`.
        """
        sliding, once = Sliding(text), {}
        if _repeats(sliding.hashes(PASSAGE)):
            return self
        for length, hashes in self.by_length():
            _, which = places(sliding.hashes(length), hashes)
            once[length] = hashes[np.bincount(which, minlength=len(hashes)) < 2]
        whole = once.pop(PASSAGE, _NO_HASHES)
        return Passages(whole, np.sort(np.concatenate([_NO_HASHES, *once.values()])))


def plain(text: str) -> str:
    """A text in lower case and without white space."""
    return "".join(text.split()).casefold()


class Sliding:
    """Hashes of all passages of a text, one for every start: polynomials in 64 bits.

    Args:
        text: from :func:`plain`.
    """

    def __init__(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
        mixed = (codes + _ODD) * _ODD
        mixed ^= mixed >> np.uint64(29)
        # A difference of two sums, times a power, is the polynomial of what is between them: products wrap around, and
        # an odd base has an inverse.
        self._sums = np.concatenate([_NO_HASHES, [np.uint64(0)], np.cumsum(mixed * _powers(_INVERSE, len(codes)))])
        self._powers = _powers(_BASE, len(codes))

    def hashes(self, length: int) -> Hashes:
        """Those of the passages of a length, in the form in which :class:`Passages` has them."""
        if len(self._powers) < length:
            return _NO_HASHES
        found: Hashes = (self._sums[length:] - self._sums[:-length]) * self._powers[length - 1 :]
        return found if length == PASSAGE else found & ~_LENGTH | np.uint64(length)


def places(hashes: Hashes, known: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where known hashes stand among others, ascending, and which of the known ones stand there.

    Args:
        hashes: those that are looked through.
        known: ascending, at least one.
    """
    which = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    at = np.flatnonzero(known[which] == hashes)
    return at, which[at]


def _repeats(hashes: Hashes) -> bool:
    """Whether hardly any hash is there once."""
    counts = np.unique(hashes, return_counts=True)[1]
    return int((counts == 1).sum()) * ONCE < len(hashes)


def _evenly(hashes: Hashes, count: int) -> Hashes:
    return hashes[np.linspace(0, len(hashes) - 1, count).round().astype(int)] if count else _NO_HASHES


def _powers(base: np.uint64, count: int) -> Hashes:
    """The powers of a number from 0 on."""
    found = np.full(count, base, dtype=np.uint64)
    found[:1] = 1
    powers: Hashes = np.cumprod(found, dtype=np.uint64)
    return powers


_NO_HASHES: Hashes = np.empty(0, dtype=np.uint64)
_ODD, _BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
"""Constants of SplitMix64; products wrap around."""
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
