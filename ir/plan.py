"""A plan: the units that every group keeps, and the slices of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The decision of a pruning pass.

    Attributes:
        keep: group name -> sorted indices of the kept units. Units of a nested group have the number
            ``parent_unit * size + unit``, over the parent units *before* the cut.
        slices: (tensor name, dimension) -> sorted indices that are kept, so that
            ``source.index_select(dimension, indices)`` is the smaller tensor. Has only the dimensions that shrink.
            A tensor that several modules share is listed under its first name.
        sizes: (tensor name, dimension) -> how many indices there were; only where that is known.
    """

    keep: Mapping[str, Indices] = field(default_factory=dict)
    slices: Mapping[tuple[str, int], Indices] = field(default_factory=dict)
    sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)

    @property
    def removes_nothing(self) -> bool:
        return not self.slices

    def by_tensor(self) -> dict[str, dict[int, Indices]]:
        """Tensor name -> dimension -> the indices that stay, both in ascending order."""
        found: dict[str, dict[int, Indices]] = {}
        for (name, dim), kept in sorted(self.slices.items()):
            found.setdefault(name, {})[dim] = kept
        return found

    def renamed(self, names: Mapping[str, str]) -> Plan:
        """The same plan, with other names for the tensors that ``names`` has."""
        return Plan(
            self.keep,
            {(names.get(name, name), dim): kept for (name, dim), kept in self.slices.items()},
            {(names.get(name, name), dim): size for (name, dim), size in self.sizes.items()},
        )

    def measured(self, shapes: Mapping[str, Sequence[int]]) -> Plan:
        """The same plan, with the sizes of what it slices.

        Args:
            shapes: of the tensors before the cut, by the names that this plan has for them.
        """
        sizes = {(name, dim): shapes[name][dim] for name, dim in self.slices if dim < len(shapes.get(name, ()))}
        return Plan(self.keep, self.slices, sizes)
