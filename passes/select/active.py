"""The parameters of a mixture of experts that one token uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...ir import RequestError
from ...ir.axes import Atom, Axis, atoms_of
from ...ir.graph import Graph, Value
from ...ir.groups import Kind
from ..couple.coupling import Coupling, couple
from .costs import Costs, Term
from .memory import replaced


class Active(Costs):
    """Active parameters, as a function of how many units the groups keep: of the weights from which a router picks
    experts by index, as many experts count as a token is given; all other parameters count whole, routers and shared
    experts among them (as mixtures are described, DeepSeek-V3, arXiv 2412.19437, table 3).

    Args:
        coupling: of the graph.
        names: the groups that may be cut. Without some experts, a token is given as many as before.

    Raises:
        RequestError: no router picks among experts.
    """

    def __init__(self, coupling: Coupling, names: Iterable[str]) -> None:
        self._picked = _picked_from_experts(coupling)
        if not self._picked:
            raise RequestError(
                "target active counts the parameters that a token is given by a router, and this model has no experts "
                "to choose from",
                "use params, which is the same for a dense model",
            )
        super().__init__(coupling, names, "params")

    def whole(self, graph: Graph) -> int:
        """The active parameters of a graph as it is."""
        if graph is not self._graph:
            return Active(couple(graph), ()).whole(graph)
        return sum(self._of(term, {}) for term in self._listed())

    def _other_axes(self) -> Mapping[Value, Sequence[Axis]]:
        return self._picked

    def _listed(self) -> list[Term]:
        return [Term(held.value, 1) for held in self._graph.parameters if not held.is_buffer]


def _picked_from_experts(coupling: Coupling) -> dict[Value, tuple[Axis, ...]]:
    """The parameters from which experts are picked, with as many experts as a token is given."""
    experts = {group.atom: group.minimum for group in coupling.groups.values() if group.kind is Kind.EXPERTS}
    leaves = {parameter.value for parameter in coupling.graph.parameters}
    found: dict[Value, tuple[Axis, ...]] = {}
    for op in coupling.graph.ops:
        value = op.args[0] if op.packet == "aten.index" else None
        if not isinstance(value, Value) or value not in leaves:
            continue
        first, *others = coupling.axes[value]
        picked = [atom for atom in atoms_of(first) if atom.id in experts]
        if picked:
            given = {atom.id: Atom(-1 - atom.id, experts[atom.id]) for atom in picked}
            found[value] = (replaced(first, given), *others)
    return found
