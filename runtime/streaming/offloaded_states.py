"""Hidden states that are kept for the way back, with their values elsewhere meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from .store import Kept, Shelf


class OffloadedStates:
    """Moves the values of leaves of a graph to a shelf, and brings them back.

    A leaf stays the same tensor: its graph and its gradient do not change. Without its values it holds NaN everywhere,
    so that whoever reads it by mistake does not go on with wrong numbers.

    Args:
        shelf: where values are kept; None keeps them where they are.
    """

    def __init__(self, shelf: Shelf | None) -> None:
        self._shelf = shelf
        self._away: dict[int, Kept] = {}

    def move(self, leaf: Tensor, known: int) -> None:
        """Move the values of a leaf away, unless something else may still read them.

        Args:
            leaf: has no graph of its own.
            known: number of references to it, beside the caller's variable, from what brings it back before reading it.

        Raises:
            FxpruneError: the disk is full, or the file cannot be written.
        """
        # Beside those, the caller's variable, the parameter of this function and the argument of getrefcount.
        if self._shelf is None or id(leaf) in self._away or sys.getrefcount(leaf) > known + 3:
            return
        values = leaf.detach()
        self._away[id(leaf)] = self._shelf.put("state", values)
        leaf.data = torch.full((), torch.nan, dtype=leaf.dtype, device=leaf.device).expand(leaf.shape)

    def bring(self, leaves: Iterable[Tensor]) -> None:
        """Bring back the values of those leaves that are away."""
        for leaf in leaves:
            if (read := self._away.pop(id(leaf), None)) is not None:
                leaf.data = read().to(leaf.device, copy=True)
