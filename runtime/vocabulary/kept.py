"""New ids of tokens where others went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.plan import Indices


@dataclass(frozen=True)
class Renumbering:
    """The ids of tokens, before and now: those that stay keep their order.

    Attributes:
        kept: ids that stay, ascending.
        count: rows that there were. Ids of tokens behind the last row come behind the last one now.
    """

    kept: Indices
    count: int

    def new(self, number: int) -> int | None:
        """The id that a token has now; None for one that went. A negative number is no id, and stays."""
        if number < 0:
            return number
        if number >= self.count:
            return number - self.count + len(self.kept)
        place = int(np.searchsorted(self.kept, number))
        return place if place < len(self.kept) and self.kept[place] == number else None
