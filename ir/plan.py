"""A plan: which units every group keeps, and what that means for every dimension of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The decision of a selection pass, independent of how it was reached.

    Attributes:
        keep: group name -> the sorted unit indices that stay. For a group nested under another one the units are
            numbered ``parent_unit * size + unit`` over the *original* parents.
        slices: (tensor name, dimension) -> the sorted indices of that dimension that stay, so that
            ``source.index_select(dimension, indices)`` is the smaller tensor. Only the dimensions that shrink are here.
            A tensor that several modules share stands under its first name only.
    """

    keep: Mapping[str, Indices] = field(default_factory=dict)
    slices: Mapping[tuple[str, int], Indices] = field(default_factory=dict)

    @property
    def removes_nothing(self) -> bool:
        return not self.slices

    def by_tensor(self) -> dict[str, dict[int, Indices]]:
        """Tensor name -> dimension -> the indices that stay, both in ascending order."""
        found: dict[str, dict[int, Indices]] = {}
        for (name, dim), kept in sorted(self.slices.items()):
            found.setdefault(name, {})[dim] = kept
        return found
