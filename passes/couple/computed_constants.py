"""Constants computed in the model's code whose values differ along units: ALiBi slopes, sinusoids.

A graph can slice such a constant. The module computes it again from the number of units, so the units must not be
removed when the module itself is written to the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

import torch
from torch import nn

from ...ir.axes import atoms_of
from ...ir.graph import Value
from .coupling import Coupling


def freeze_computed(coupling: Coupling, values: Mapping[Value, torch.Tensor], stored: Set[str]) -> Coupling:
    """Freeze the groups along which a computed constant has different values, and the groups of buffers that no
    checkpoint holds.

    Args:
        coupling: the analysis of the graph.
        values: values of its constants and folded operators, as far as they are known.
        stored: names of the tensors in the checkpoint.
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
    """Freeze the widths of ``torch.nn.MultiheadAttention``, whose heads together must be as wide as its input."""
    fixed = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    why = "torch.nn.MultiheadAttention takes all heads together to be as wide as its input"
    held = {g.atom for g in coupling.groups.values() if any(tensor.startswith(fixed) for tensor in g.tensors)}
    return _frozen(coupling, dict.fromkeys(held, why)) if fixed else coupling


def _frozen(coupling: Coupling, reasons: Mapping[int, str]) -> Coupling:
    """The same coupling with groups frozen; ``reasons``: atom id -> reason."""
    groups = {
        name: replace(group, frozen=group.frozen or reasons.get(group.atom)) for name, group in coupling.groups.items()
    }
    parents = {name: group.parent and groups[group.parent.name] for name, group in groups.items()}
    return replace(coupling, groups={name: replace(group, parent=parents[name]) for name, group in groups.items()})
