"""Layers and parts of layers taken out of a state: of its model, its graph, and what its ledger says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...ir import FxpruneError, Plan
from ...ir.repairs import Repairs
from ...runtime.tensors import first_names, tensors_by_name
from ..model.blocks import Blocks, find_blocks, keep_blocks
from ..state import State
from .sub_blocks import put_absences


@dataclass(frozen=True)
class LayersKept:
    """The layers that stayed.

    Attributes:
        kept: their indices, ascending.
        count: how many there were.
    """

    name: ClassVar[str] = "layers"

    kept: tuple[int, ...]
    count: int

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"kept": list(self.kept), "count": self.count}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayersKept:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for other data.
        """
        kept, count = tuple(data["kept"]), data["count"]
        if not all(type(number) is int for number in (*kept, count)) or not kept:
            raise ValueError("the layers to keep are no numbers")
        if sorted({*kept}) != list(kept) or not 0 <= kept[0] <= kept[-1] < count:
            raise ValueError(f"the layers to keep are not among {count}, in ascending order")
        return cls(kept, count)

    def redo(self, state: State) -> None:
        """Take the other layers out.

        Raises:
            FxpruneError: when the model has another number of layers.
        """
        blocks = find_blocks(state.subject.model, state.subject.graph)
        if len(blocks.modules) != self.count:
            raise FxpruneError(f"the model has {len(blocks.modules)} layers, not {self.count}")
        keep_layers(state, blocks, self.kept)


@dataclass(frozen=True)
class PartsAbsent:
    """The parts of layers that were taken out.

    Attributes:
        absences: module path -> what stands there now, as in :class:`~fxprune.runtime.absence.Absence`.
    """

    name: ClassVar[str] = "parts"

    absences: Mapping[str, Mapping[str, int | None]]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"absences": {path: dict(absence) for path, absence in self.absences.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartsAbsent:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for other data.
        """
        for path, absence in data["absences"].items():
            outputs, cache = absence["outputs"], absence["cache"]
            if type(outputs) is not int or not (cache is None or type(cache) is int) or len(absence) != 2:
                raise ValueError(f"what stands in place of {path} is not described")
        return cls(data["absences"])

    def redo(self, state: State) -> None:
        """Take them out.

        Raises:
            FxpruneError: when the model has no such parts.
        """
        paths = {path for path, _ in state.subject.model.named_modules() if path}
        if missing := sorted(self.absences.keys() - paths):
            raise FxpruneError(f"the model has no part {missing[0]}")
        take_parts_out(state, self.absences)


def keep_layers(state: State, blocks: Blocks, kept: Sequence[int]) -> None:
    """Take all other layers out of the model, and trace it again.

    Args:
        state: what is changed.
        blocks: the layers of its model.
        kept: the indices of those that stay, ascending.

    Raises:
        FxpruneError: no configuration describes the new depth.
    """
    ledger = state.ledger
    first = first_names(state.subject.model)
    names = keep_blocks(state.subject.model, blocks, kept)
    ledger.repairs = _renumbered(ledger.repairs, blocks.path, kept)
    ledger.renamed = {now: ledger.renamed.get(before, before) for now, before in names.items()}
    ledger.decisions.append(LayersKept(tuple(kept), len(blocks.modules)))
    _trace_anew(state, names, first)


def take_parts_out(state: State, absences: Mapping[str, Mapping[str, Any]]) -> None:
    """Take parts of layers out of the model, and trace it again.

    Args:
        state: what is changed.
        absences: as in :class:`PartsAbsent`.
    """
    first = first_names(state.subject.model)
    put_absences(state.subject.model, absences)
    state.ledger.decisions.append(PartsAbsent(absences))
    _trace_anew(state, {name: name for name in state.subject.model.state_dict()}, first)


def _trace_anew(state: State, names: Mapping[str, str], first: Mapping[str, str]) -> None:
    """Update the state after blocks were removed.

    Args:
        state: of the model without them.
        names: present tensor name -> name before.
        first: name before -> the first name that the tensor had then, which may be gone.
    """
    ledger, known = state.ledger, tensors_by_name(state.subject.model)
    names = {now: first[before] if now in known else before for now, before in names.items()}
    ledger.plan = _renamed(ledger.plan, names)
    if state.subject.residence is not None:
        state.subject.residence.store.rename(names)
    ledger.changed = frozenset(now for now, before in names.items() if before in ledger.changed)
    state.before.same_layers, ledger.consumers = None, []
    state.subject.graph, state.subject.example = state.host.retrace(state.subject.model)


def _renumbered(repairs: Repairs, path: str, kept: Sequence[int]) -> Repairs:
    """The repairs of the remaining blocks, under the new block indices."""
    block = re.compile(re.escape(path) + r"\.(\d+)(?=\.|$)")
    now = {str(before): f"{path}.{place}" for place, before in enumerate(kept)}
    left = {
        block.sub(lambda found: now[found[1]], module): changes
        for module, changes in repairs.attributes.items()
        if (found := block.match(module)) is None or found[1] in now
    }
    return Repairs(left)


def _renamed(plan: Plan | None, names: Mapping[str, str]) -> Plan | None:
    """The plan for the remaining tensors, under their new names."""
    if plan is None:
        return None
    slices = {
        (now, dim): kept for now, before in names.items() for (n, dim), kept in plan.slices.items() if n == before
    }
    return Plan(plan.keep, slices)
