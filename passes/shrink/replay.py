"""replay: remove the same units as another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...ir import Indices, RequestError
from ...ir.groups import Group, Kind
from ...ir.options import option
from ...runtime.model.embeddings import input_embeddings
from ...runtime.model.held_values import held_values
from ...runtime.tensors import first_names
from ..base import Pass, PassKind
from ..couple.coupling import Coupling
from ..couple.tokens import couple_tokens
from ..state import State
from .cut import cut
from .graph import make_plan
from .tokens_kept import keep_tokens

Slices = Mapping[tuple[str, int], Indices]

_OTHER_MODEL_HINT = "the plan was made for another model; give a plan of the same architecture and sizes"


@dataclass(frozen=True, kw_only=True)
class Replay(Pass):
    """Apply a plan that another run wrote."""

    name: ClassVar[str] = "replay"
    kind: ClassVar[PassKind] = PassKind.SCORE
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    needs_weights: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    sha256: str = option("", "sha256 of the plan file")

    def run(self, state: State) -> None:
        """Find the units that the recorded slices keep, and remove the others.

        Raises:
            RequestError: for slices of a plan for another model.
        """
        coupling = state.subject.coupling
        assert coupling is not None, "the manager runs couple first"
        assert state.data.recorded is not None, "whoever puts replay into a pipeline gives it a plan"
        tokens, others = _apart(state, state.data.recorded)
        keep = kept_units(coupling, others)
        _check_turned(state, coupling, keep)
        state.ledger.report[self.name] = {"groups": len(keep) + bool(tokens)}
        cut(state, coupling, keep)
        if tokens:
            found, group = couple_tokens(state.subject.graph, state.subject.model)
            keep_tokens(state, found, group, kept_units(found, tokens)[group.name])


def _check_turned(state: State, coupling: Coupling, keep: Mapping[str, Indices]) -> None:
    """Refuse channels of values: which they are depends on how a text turned them, and a plan does not say that.

    Raises:
        RequestError: naming a group.
    """
    turned = [name for name in keep if coupling.groups[name].kind is Kind.HEAD_DIM]
    if turned and not held_values(state.subject.model):
        raise RequestError(
            f"the plan removes channels of turned values ({turned[0]}), and does not hold the turn",
            "repeat the passes instead: `fxprune recipe OUT` prints them",
        )


def _apart(state: State, slices: Slices) -> tuple[Slices, Slices]:
    """The slices by which tokens go, and the others."""
    owner = input_embeddings(state.subject.model)
    table = next((path for path, held in state.subject.model.named_modules() if held is owner), "")
    if owner is None or (first_names(state.subject.model).get(f"{table}.weight", ""), 0) not in slices:
        return {}, slices
    _, group = couple_tokens(state.subject.graph, state.subject.model)
    places = {(member.tensor, member.dim) for member in group.members}
    return {k: v for k, v in slices.items() if k in places}, {k: v for k, v in slices.items() if k not in places}


def kept_units(coupling: Coupling, slices: Slices) -> dict[str, Indices]:
    """The units that the slices of a plan keep: group name -> kept units, for the groups that were cut.

    Raises:
        RequestError: when the slices name a tensor, a dimension or an index that the model does not have, or match no
            choice of units.
    """
    _check_extents(coupling, slices)
    keep: dict[str, Indices] = {}
    # A nested group comes after its parent: units removed with a parent unit do not count as a cut of the nested group.
    for group in sorted(coupling.groups.values(), key=lambda group: group.parent is not None):
        units = _units(group, slices)
        if units is not None and not _whole(group, units):
            keep[group.name] = units
    plan = make_plan(coupling, keep)
    for key in sorted({**plan.slices, **slices}):
        ours, theirs = plan.slices.get(key), slices.get(key)
        if ours is None or theirs is None or not np.array_equal(ours, theirs):
            raise RequestError(
                f"the plan's indices for dimension {key[1]} of '{key[0]}' split a unit", _OTHER_MODEL_HINT
            )
    return keep


def _check_extents(coupling: Coupling, slices: Slices) -> None:
    shapes = {parameter.name: parameter.value.shape for parameter in coupling.graph.parameters}
    for (name, dim), kept in sorted(slices.items()):
        if name not in shapes:
            raise RequestError(f"the plan slices '{name}', which the model does not have", _OTHER_MODEL_HINT)
        if dim >= len(shapes[name]):
            raise RequestError(
                f"the plan slices dimension {dim} of '{name}', whose shape is {shapes[name]}", _OTHER_MODEL_HINT
            )
        if len(kept) == 0 or kept[0] < 0 or (np.diff(kept) <= 0).any() or kept[-1] >= shapes[name][dim]:
            raise RequestError(
                f"the plan's indices for dimension {dim} of '{name}' do not ascend within 0 to {shapes[name][dim] - 1}",
                _OTHER_MODEL_HINT,
            )


def _units(group: Group, slices: Slices) -> Indices | None:
    """The kept units, from the first member that was cut; None when no member was cut."""
    for member in group.members:
        kept = slices.get((member.tensor, member.dim))
        if kept is not None:
            units = group.unit_map(member.axis)
            if (units >= 0).any():
                return np.unique(units[kept][units[kept] >= 0])
    return None


def _whole(group: Group, units: Indices) -> bool:
    """Whether the group lost no units, except those that were removed with parent units."""
    parents = len(np.unique(units // group.size)) if group.parent else 1
    return len(units) == parents * group.size
