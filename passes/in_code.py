"""Units along which a model's own code computes different values: slopes of ALiBi, sinusoids.

A graph slices such a constant. A module computes it anew from how many units there are, so that units may not go where
the module itself is what will be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..ir.axes import atoms_of
from ..ir.graph import Value
from .couple import Coupling


def freeze_computed(coupling: Coupling, values: Mapping[Value, torch.Tensor]) -> Coupling:
    """Freeze the groups whose units stand in a constant that is not the same for all of them.

    Args:
        coupling: of the graph.
        values: what its constants and folded operators hold.
    """
    read = {value for op in coupling.graph.ops for value in op.operands}
    sources = {value: op.source for op in coupling.graph.folded for value in op.made}
    reasons: dict[int, str] = {}
    for value, data in values.items():
        if value not in read or data.is_meta:
            continue
        for dim, axis in enumerate(coupling.axes[value]):
            atoms = {atom.id for atom in atoms_of(axis)} & coupling.by_atom.keys() - reasons.keys()
            if atoms and bool((data != data.narrow(dim, 0, 1)).any()):
                where = f" at {sources[value]}" if value in sources else ""
                reasons |= dict.fromkeys(atoms, f"the model's code computes values along it{where}")
    groups = {
        name: replace(group, frozen=group.frozen or reasons.get(group.atom)) for name, group in coupling.groups.items()
    }
    parents = {name: group.parent and groups[group.parent.name] for name, group in groups.items()}
    return replace(coupling, groups={name: replace(group, parent=parents[name]) for name, group in groups.items()})
