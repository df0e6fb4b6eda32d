"""Units along which a model's own code computes different values: slopes of ALiBi, sinusoids.

A graph slices such a constant. A module computes it anew from how many units there are, so that units may not go where
the module itself is what will be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

import torch
from torch import nn

from ..ir.axes import atoms_of
from ..ir.graph import Value
from .couple import Coupling


def freeze_computed(coupling: Coupling, values: Mapping[Value, torch.Tensor], stored: Set[str]) -> Coupling:
    """Freeze the groups whose units stand in a constant that is not the same for all of them, or in a buffer that no
    checkpoint holds.

    Args:
        coupling: of the graph.
        values: what its constants and folded operators hold; those that are not known are left out.
        stored: names of the tensors that a checkpoint holds.
    """
    read = {value for op in coupling.graph.ops for value in op.operands}
    sources = {value: op.source for op in coupling.graph.folded for value in op.made}
    unsaved = {p.value: p.name for p in coupling.graph.parameters if p.is_buffer and p.name not in stored}
    reasons: dict[int, str] = {}
    for value, name in unsaved.items():
        held = {atom.id for axis in coupling.axes[value] for atom in atoms_of(axis)} if value in read else set()
        reasons |= dict.fromkeys(held, f"the model's code computes {name}, which no checkpoint holds")
    for value, data in values.items():
        if value not in read:
            continue
        for dim, axis in enumerate(coupling.axes[value]):
            atoms = {atom.id for atom in atoms_of(axis)} & coupling.by_atom.keys() - reasons.keys()
            if atoms and bool((data != data.narrow(dim, 0, 1)).any()):
                where = f" at {sources[value]}" if value in sources else ""
                reasons |= dict.fromkeys(atoms, f"the model's code computes values along it{where}")
    return _frozen(coupling, reasons)


def freeze_fixed(coupling: Coupling, model: nn.Module) -> Coupling:
    """Freeze the widths of torch's own attention, which takes all heads together to be as wide as its input."""
    fixed = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    why = "torch.nn.MultiheadAttention takes all heads together to be as wide as its input"
    held = {g.atom for g in coupling.groups.values() if any(tensor.startswith(fixed) for tensor in g.tensors)}
    return _frozen(coupling, dict.fromkeys(held, why)) if fixed else coupling


def _frozen(coupling: Coupling, reasons: Mapping[int, str]) -> Coupling:
    """The same with groups frozen, by atom."""
    groups = {
        name: replace(group, frozen=group.frozen or reasons.get(group.atom)) for name, group in coupling.groups.items()
    }
    parents = {name: group.parent and groups[group.parent.name] for name, group in groups.items()}
    return replace(coupling, groups={name: replace(group, parent=parents[name]) for name, group in groups.items()})
