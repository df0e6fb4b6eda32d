"""Whether two texts share passages: one that a model was calibrated or trained on, and one to measure it on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .corpus import Text
from .fingerprints import Fingerprint
from .passages import PASSAGE, SHARED, Sliding, places, plain

FEW = 0.1
"""Up to this share of either text, short passages that both hold may be chance, such as the same words that begin two
questions. Of whole ones, :data:`SHARED` are none."""


@dataclass(frozen=True)
class MeasuredText:
    """The windows of a text that a model is to be measured on.

    Attributes:
        windows: as text, from :func:`.passages.plain`.
    """

    windows: tuple[str, ...]

    @classmethod
    def of(cls, windows: torch.Tensor, text: Text) -> MeasuredText:
        """The windows of a text.

        Args:
            windows: int64 ``[N, L]``.
            text: the text that they are from.
        """
        return cls(tuple(plain(text.decode(window)) for window in windows.tolist()))

    @cached_property
    def whole(self) -> str:
        """All windows, one right behind the other."""
        return "".join(self.windows)

    @cached_property
    def sliding(self) -> Sliding:
        """The hashes of :attr:`whole`."""
        return Sliding(self.whole)


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


def overlap(read: Fingerprint, other: MeasuredText) -> Overlap | None:
    """The overlap of a text with one that was read before; None if they share no more than chance explains.

    Args:
        read: the text that was read.
        other: the other text.
    """
    shared: dict[int, int] = {}
    ends, first = [], (len(other.whole), 0)
    for length, hashes in read.passages.by_length():
        at, which = places(other.sliding.hashes(length), hashes)
        if len(at):
            shared[length] = len(np.unique(which))
            ends.append(at + length - 1)
            first = min(first, (int(at[0]), length))
    passages = sum(shared.values())
    if passages < SHARED or (shared.get(PASSAGE, 0) < SHARED and not _many(shared, read, other)):
        return None
    holding = np.searchsorted(np.cumsum([len(window) for window in other.windows]), np.concatenate(ends), side="right")
    start, length = first
    return Overlap(passages, len(np.unique(holding)), other.whole[start : start + length])


def _many(shared: dict[int, int], read: Fingerprint, other: MeasuredText) -> bool:
    """Whether shared passages are more than :data:`FEW` of what was read, or of the other text: either may be a small
    part of the other one. A passage counts once, however often the other text has it."""
    of_read = sum(shared.values()) / len(read.passages)
    characters = sum(length * count for length, count in shared.items()) * read.total / len(read.passages)
    return max(of_read, characters / len(other.whole)) > FEW


def unchecked(read: Fingerprint, other: MeasuredText) -> str:
    """Why an overlap would not be found; empty where it would be."""
    if len(read.passages) < SHARED:
        return "too little of it was read to know it again"
    if len(other.whole) < SHARED * min(length for length, _ in read.passages.by_length()):
        return f"the windows hold {len(other.whole)} characters"
    return ""
