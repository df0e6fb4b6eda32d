"""A decision carried out: the plan, the rewritten graph, and the module that is shrunk in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...ir import FxpruneError, Indices, Plan
from ...ir.graph import Graph
from ...ir.groups import Kind
from ...ir.repairs import Number, Repairs
from ...runtime.model.held_values import VALUE_WIDTH, held_values
from ...runtime.tensors import sliced, tensors_by_name
from ...runtime.tolerances import FUNCTION_TOLERANCE, relative_difference
from ..couple.consumers import taking_in
from ..couple.coupling import Coupling
from ..state import State
from .graph import extents_by_module, make_plan, rewrite
from .module import known_by, shrink_module


@dataclass(frozen=True)
class Cut:
    """The units that a pruning pass kept.

    Attributes:
        keep: group name -> sorted indices of the units that stay, as in :class:`~fxprune.ir.plan.Plan`.
    """

    name: ClassVar[str] = "cut"

    keep: Mapping[str, Indices]

    def to_json(self) -> dict[str, Any]:
        """As JSON data with arrays."""
        return {"keep": dict(self.keep)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cut:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for other data.
        """
        keep = data["keep"]
        if not all(
            isinstance(units, np.ndarray) and (units.dtype, units.ndim) == (_INT64, 1) for units in keep.values()
        ):
            raise ValueError("the units to keep are no int64 vectors")
        return cls(keep)

    def redo(self, state: State) -> None:
        """Cut again, with the coupling of the graph that there is now.

        Raises:
            FxpruneError: there is none, or its groups have no such units.
        """
        coupling = state.subject.coupling
        if coupling is None or coupling.graph is not state.subject.graph:
            raise FxpruneError("units were cut that no analysis of the graph names")
        cut(state, coupling, self.keep)


_INT64 = np.dtype(np.int64)


def cut(state: State, coupling: Coupling, keep: Mapping[str, Indices]) -> None:
    """Apply a decision: rewrite the graph, shrink the module, combine the plan with that of earlier passes."""
    carry_out(state, coupling, keep)
    state.ledger.decisions.append(Cut({name: np.asarray(units, dtype=np.int64) for name, units in keep.items()}))


def carry_out(state: State, coupling: Coupling, keep: Mapping[str, Indices]) -> Plan:
    """As :func:`cut`, for a decision of another kind; returns the plan of this cut alone."""
    plan = make_plan(coupling, keep)
    subject, ledger = state.subject, state.ledger
    after = rewrite(coupling, plan)
    if not plan.removes_nothing:
        _shrink(state, coupling, plan, after)
        if subject.residence is not None:
            subject.residence.store.cut(plan)
    ledger.consumers += consumers_of(coupling, plan)
    subject.graph = after
    ledger.plan = plan if ledger.plan is None else join_plans(ledger.plan, plan, coupling)
    return plan


def _shrink(state: State, coupling: Coupling, plan: Plan, after: Graph) -> None:
    """Shrink the module in place; if its own forward does not work at the new widths, rebuild it when possible."""
    subject, ledger, rebuild = state.subject, state.ledger, state.host.rebuild
    before = subject.graph
    whole = tensors_by_name(subject.model) if rebuild is not None else {}
    try:
        repairs = shrink_module(
            subject.model, plan, extents_by_module(before, after), subject.example,
            outputs=subject.outputs, accept=_acceptance(state, after),
            known=None if subject.observed is None else known_by(subject.observed, before, after),
            resized=_resized(before, after), given=_value_widths(state, coupling, plan),
        )  # fmt: skip
    except FxpruneError as stuck:
        if rebuild is None:
            raise
        subject.model = rebuild(after, sliced(whole, plan), stuck.message)
        ledger.repairs = Repairs()
    else:
        ledger.repairs = ledger.repairs.then(repairs)


def _value_widths(state: State, coupling: Coupling, plan: Plan) -> dict[tuple[str, str], Number]:
    """What maps that hold the values of heads are told of the channels that stay."""
    held, found = held_values(state.subject.model), dict[tuple[str, str], Number]()
    for name, units in plan.keep.items():
        paths = {tensor.rpartition(".")[0] for tensor in coupling.groups[name].tensors} & held.keys()
        if coupling.groups[name].kind is Kind.HEAD_DIM:
            found |= {(path, VALUE_WIDTH): len(units) for path in paths}
    return found


def _resized(before: Graph, after: Graph) -> dict[int, int]:
    """The last extents of outputs that a rewrite changes: those that count tokens."""
    pairs = ((old.shape[-1:], new.shape[-1:]) for old, new in zip(before.outputs, after.outputs, strict=True))
    return {old[0]: new[0] for old, new in pairs if old != new}


def consumers_of(coupling: Coupling, plan: Plan) -> list[tuple[str, int]]:
    """(tensor, dimension) of every weight that reads, or may read, units of a group that the plan cuts."""
    members = [m for name in plan.keep for m in taking_in(coupling.groups[name], coupling.graph)]
    return list(dict.fromkeys((m.tensor, m.dim) for m in members))


def _acceptance(state: State, after: Any) -> Any:
    execute = state.host.execute
    if execute is None:
        return None

    def accept() -> bool:
        expected, got = execute(after, state.subject.model)
        return relative_difference(got, expected) <= FUNCTION_TOLERANCE

    return accept


def join_plans(first: Plan, second: Plan, coupling: Coupling) -> Plan:
    """Combine two plans that ran one after the other into one plan on the dense model.

    Args:
        first: plan on the dense model.
        second: plan on the result of the first.
        coupling: analysis of the result of the first.
    """
    slices = dict(first.slices)
    for key, kept in second.slices.items():
        slices[key] = slices[key][kept] if key in slices else kept
    keep = dict(first.keep)
    for name, kept in second.keep.items():
        # Units that the first plan keeps stay in order, so the second plan's unit numbers are positions in that list.
        keep[name] = keep[name][kept] if name in keep and len(keep[name]) == coupling.groups[name].units else kept
    return Plan(keep, slices)
