"""What the code of a model holds for: where not all kinds of units can go, those that can go without the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...ir import FxpruneError, Indices, RequestError
from ...ir.groups import Kind
from ...runtime.tensors import tensors_by_name
from ..couple.coupling import Coupling
from ..state import State
from .cut import cut


def cut_what_fits(
    state: State, coupling: Coupling, keep: Mapping[str, Indices]
) -> tuple[dict[str, Indices], dict[str, str]]:
    """Apply a decision, without the kinds of units whose number the model's own code fixes.

    The code of a model may hold a number that nothing in it shows: heads in four parts, one for each chip that it was
    trained on; a module that runs although nothing reads what it returns. It shows when the smaller model runs.

    Args:
        state: before the cut. A host that rebuilds the module needs none of this.
        coupling: the analysis of its graph.
        keep: group name -> sorted units to keep.

    Returns:
        The units that are kept, without the groups that stay whole; and for every kind that does, why.

    Raises:
        FxpruneError: the model's code holds for none of the kinds alone; or the model could not be put back.
    """
    try:
        cut(state, coupling, keep)
    except RequestError:
        raise
    except FxpruneError as stuck:
        first = stuck
    else:
        return dict(keep), {}
    for left in _left_out({coupling.groups[name].kind for name in keep}):
        if state.host.rebuild is not None or not _is_whole(state, coupling):
            break
        fitting = {name: units for name, units in keep.items() if coupling.groups[name].kind not in left}
        if not any(len(units) < coupling.groups[name].units for name, units in fitting.items()):
            continue
        try:
            cut(state, coupling, fitting)
        except FxpruneError:
            continue
        return fitting, {kind.value: first.message for kind in sorted(left, key=lambda kind: kind.value)}
    raise first


def _left_out(kinds: set[Kind]) -> Iterator[frozenset[Kind]]:
    """The kinds to leave out: one of them, the narrowest first since code fixes heads most often; then all but one."""
    order = sorted(kinds, key=list(Kind).index)
    yield from (frozenset({kind}) for kind in order)
    if len(order) > 2:
        yield from (frozenset(kinds - {kind}) for kind in reversed(order))


def _is_whole(state: State, coupling: Coupling) -> bool:
    """Whether the module is as it was before a cut that failed."""
    tensors = tensors_by_name(state.subject.model)
    held = (parameter for parameter in coupling.graph.parameters if parameter.name in tensors)
    return all(tuple(tensors[parameter.name].shape) == parameter.value.shape for parameter in held)
