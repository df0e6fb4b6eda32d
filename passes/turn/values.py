"""Which attention heads have values that can be turned: what makes them, what reads them, and what is between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from ...ir.axes import atoms_of
from ...ir.graph import Value
from ...ir.groups import Group, Kind, Occurrence, Role, positions
from ...ir.plan import Indices
from ...ir.rules import FUSED_ATTENTION, LINEAR
from ...runtime.model.held_values import MAKES, READS
from ..couple.coupling import Coupling

MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "unflatten", "flatten", "transpose", "permute", "movedim", "t", "expand",
        "repeat_interleave", "contiguous", "clone", "alias", "detach", "unsqueeze", "squeeze", "slice", "select", "cat",
        "dropout", "_to_copy", "to",
    )
)  # fmt: skip
"""Operators that move numbers and change none of them; which of them they move does not depend on the numbers."""

MAPS = frozenset({LINEAR, FUSED_ATTENTION})
"""Operators that are linear in the values."""

SCALES = frozenset({"aten.mul", "aten.div"})
"""Operators that scale the values by what has no such channels."""


@dataclass(frozen=True)
class HeadValues:
    """The values of the heads of one attention.

    Attributes:
        group: their channels, alike in all heads.
        makers: rows of weights and biases that make them.
        readers: columns of weights that read what attention makes of them.
        heads: the heads that have values of their own; None where there is one.
    """

    group: Group
    makers: tuple[Occurrence, ...]
    readers: tuple[Occurrence, ...]
    heads: Group | None

    def rows(self, member: Occurrence) -> list[Indices]:
        """For each head the places of its channels in a member: int64 ``[times, width]``."""
        size = member.axis.size
        head = np.zeros(size, dtype=np.int64) if self.heads is None else positions(member.axis, self.heads.atom)
        count = 1 if self.heads is None else self.heads.size
        return [np.flatnonzero(head == number).reshape(-1, self.group.size) for number in range(count)]

    @property
    def modules(self) -> dict[str, str]:
        """Path of every module with a member -> ``makes`` or ``reads``."""
        made = {_path(member.tensor): MAKES for member in self.makers}
        return made | {_path(member.tensor): READS for member in self.readers}


def head_values(coupling: Coupling, model: nn.Module) -> list[HeadValues]:
    """All that can be turned, in the order of the graph."""
    found: dict[int, HeadValues] = {}
    for op in coupling.graph.ops:
        if op.packet != FUSED_ATTENTION:
            continue
        query, key, value = (coupling.axes[operand][-1] for operand in list(op.operands)[:3])
        atoms = list(atoms_of(value))
        shared = {atom.id for axis in (query, key) for atom in atoms_of(axis)}
        group = coupling.by_atom.get(atoms[0].id) if len(atoms) == 1 else None
        if group is None or group.kind is not Kind.HEAD_DIM or group.frozen is not None or group.atom in shared:
            continue
        one = _of_group(group, coupling)
        if one is not None and _is_padded_whole(one, model) and _only_moved(coupling, group.atom):
            found[group.atom] = one
    return list(found.values())


def _of_group(group: Group, coupling: Coupling) -> HeadValues | None:
    """The values of a group; None where its members do not belong to the same heads."""
    makers = tuple(member for member in group.members if member.role is Role.OUT)
    readers = tuple(member for member in group.members if member.role is Role.IN)
    kinds = (Kind.HEADS, Kind.KV_HEADS)
    around = [one for one in coupling.groups.values() if one.kind in kinds and one.tensors >= group.tensors]
    if not makers or not readers or len(around) > 1:
        return None
    return HeadValues(group, makers, readers, around[0] if around else None)


def _is_padded_whole(values: HeadValues, model: nn.Module) -> bool:
    """Whether every member is all of one side of a linear layer, head after head, so that zeros can stand behind the
    channels of each head."""
    width = values.group.size
    for member in (*values.makers, *values.readers):
        places = positions(member.axis, values.group.atom)
        whole = len(places) % width == 0 and np.array_equal(places, np.tile(np.arange(width), len(places) // width))
        if not whole or type(model.get_submodule(_path(member.tensor))) is not nn.Linear:
            return False
        if member.dim != (0 if member.role is Role.OUT else 1) or any(rows.size == 0 for rows in values.rows(member)):
            return False
    return True


def _only_moved(coupling: Coupling, atom: int) -> bool:
    """Whether the channels are mixed with nothing and changed by nothing between the maps that make and read them."""
    for op in coupling.graph.ops:
        taken = sum(_holds(coupling, value, atom) for value in op.operands)
        given = any(_holds(coupling, value, atom) for value in op.made)
        if (taken or given) and op.packet not in MOVES | MAPS and not (op.packet in SCALES and taken == 1):
            return False
    return True


def _holds(coupling: Coupling, value: Value, atom: int) -> bool:
    return any(found.id == atom for axis in coupling.axes[value] for found in atoms_of(axis))


def _path(tensor: str) -> str:
    return tensor.rpartition(".")[0]
