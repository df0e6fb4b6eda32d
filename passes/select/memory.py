"""The memory that a model takes in use: its weights, and a key-value cache at a context and a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ...ir import FxpruneError, RequestError
from ...ir.axes import Atom, Axis, ConcatAxis, ProductAxis, atoms_of
from ...ir.cache import POSITIONS, CacheGraph
from ...ir.graph import Graph, Parameter, Value
from ...ir.groups import Kind
from ...runtime.place.memory import size_text
from ..couple.coupling import Coupling, couple
from ..state import State
from .costs import Costs, Counts, Term, itemsize
from .target import CACHE_DTYPES, Target

if TYPE_CHECKING:
    from ..data import Storage

_WHOLE_IN_CACHE = -(10**9)
"""From here down, ids of atoms that no group has, for channels that the cache keeps."""


class MemoryCosts(Costs):
    """The bytes of a model in use, as a function of how many units the groups keep.

    Weights count in the dtypes of the files, in which the result is written. The tensors of the cache are those that
    the model itself makes when it is traced with one; their axes say which groups they shrink with.

    Args:
        coupling: of the graph.
        names: the groups that may be cut.
        target: with the context and the batch.
        state: of the model that the graph was traced from, and of the one before any pass.

    Raises:
        RequestError: a context for a model that has no key-value cache.
        FxpruneError: the cache cannot be counted.
    """

    def __init__(self, coupling: Coupling, names: Iterable[str], target: Target, state: State) -> None:
        names = list(names)
        self._storage, self._renamed = state.host.storage, state.ledger.renamed
        self._cached: list[Term] = []
        self._cache_axes: dict[Value, tuple[Axis, ...]] = {}
        self._dense_cache = 0
        if target.context:
            storage = _with_cache(self._storage, target)
            bytes_each = CACHE_DTYPES[target.dtype] if target.dtype else storage.cache_itemsize
            cut = {coupling.groups[name].atom: name for name in names}
            now = storage.cache(target.context, state.subject.model)
            # Channels of values that go are filled up with zeros before the cache (runtime/model/held_values.py).
            values = [coupling.groups[name] for name in names if coupling.groups[name].kind is Kind.HEAD_DIM]
            filled = {group.atom: Atom(_WHOLE_IN_CACHE - group.atom, group.size) for group in values}
            for value, axes in _translated(coupling, now, target, cut):
                self._cached.append(Term(value, bytes_each))
                self._cache_axes[value] = tuple(replaced(axis, filled) for axis in axes)
            before = now if state.before.graph is coupling.graph else storage.cache(target.context, None)
            self._dense_cache = bytes_each * sum(_elements(before, target))
        super().__init__(coupling, names, "bytes")

    def whole(self, graph: Graph) -> int:
        """The bytes of a graph as it is; of another graph than the coupling's, with the cache of the model before any
        pass."""
        if graph is self._graph:
            return sum(self._of(term, {}) for term in self._listed())
        return sum(self._of_parameter(held, {}) * _numel(held.value) for held in graph.parameters) + self._dense_cache

    def shown(self, cost: int) -> str:
        """In the unit of bytes that fits."""
        return size_text(cost)

    def cache(self, counts: Counts) -> int:
        """The bytes of the cache alone when these groups keep ``counts`` units."""
        kept = {self._atoms[name]: count for name, count in counts.items()}
        return sum(self._of(term, kept) for term in self._cached)

    def _other_axes(self) -> Mapping[Value, Sequence[Axis]]:
        return self._cache_axes

    def _listed(self) -> list[Term]:
        weights = [Term(held.value, self._of_parameter(held, self._renamed)) for held in self._graph.parameters]
        return [*weights, *self._cached]

    def _of_parameter(self, held: Parameter, renamed: Mapping[str, str]) -> int:
        """Bytes of an element; ``renamed``: present name -> name in the source, where they differ."""
        if self._storage is None:
            return itemsize(held.value.dtype.name)
        return self._storage.itemsize(renamed.get(held.name, held.name), held.value.dtype.name)


def _with_cache(storage: Storage | None, target: Target) -> Storage:
    if storage is None or not storage.has_cache:
        raise RequestError(
            f"target {target}: only a causal language model of transformers has a key-value cache",
            f"leave the context out: memory={target.value:g} counts the weights alone",
        )
    return storage


def _numel(value: Value) -> int:
    found = 1
    for extent in value.shape:
        found *= extent
    return found


def _elements(cache: CacheGraph, target: Target) -> Iterator[int]:
    """Elements of every tensor of a cache."""
    coupling = couple(cache.graph)
    for _, axes in _used(coupling, cache, target):
        found = 1
        for axis in axes:
            found *= axis.size
        yield found


def _used(coupling: Coupling, cache: CacheGraph, target: Target) -> Iterator[tuple[Value, tuple[Axis, ...]]]:
    """The tensors of a cache, with their axes at the context and the batch of a target; these two are new atoms."""
    batch, length = coupling.axes[coupling.graph.inputs[0]][:2]
    extents: dict[int, Axis] = {}
    for axis, size in ((batch, target.batch), (length, target.context)):
        if isinstance(axis, Atom):
            extents[axis.id] = Atom(-1 - len(extents), size)
    for number, (value, positions) in enumerate(zip(cache.graph.outputs, cache.lengths, strict=True)):
        axes = [replaced(axis, extents) for axis in coupling.axes[value]]
        if positions is not None:
            axes[POSITIONS] = Atom(-3, positions)
        shape = tuple(axis.size for axis in axes)
        yield Value(f"cache.{number}", value.dtype, shape), tuple(axes)


def _translated(
    coupling: Coupling, cache: CacheGraph, target: Target, cut: Mapping[int, str]
) -> Iterator[tuple[Value, tuple[Axis, ...]]]:
    """The tensors of a cache with their axes in the atoms of another coupling of the same model, of which some groups
    (``cut``: atom -> name) may be cut.

    Raises:
        FxpruneError: the two differ in a group that may be cut.
    """
    other = couple(cache.graph)
    mine = {parameter.name: coupling.axes[parameter.value] for parameter in coupling.graph.parameters}
    same: dict[int, Axis] = {}
    apart: set[int] = set()
    for parameter in cache.graph.parameters:
        for here, there in zip(mine.get(parameter.name, ()), other.axes[parameter.value], strict=False):
            _match(here, there, same, apart)
    if odd := sorted(cut[atom] for atom in apart & cut.keys()):
        raise FxpruneError(
            f"it cannot be told how the key-value cache shrinks with {odd[0]}",
            "leave the context out of the target, or leave that group out",
        )
    unknown = max(coupling.groups[name].atom for name in coupling.groups) if coupling.groups else 0
    for value, axes in _used(other, cache, target):
        atoms = {atom for axis in axes for atom in atoms_of(axis) if atom.id >= 0}
        new = {atom.id: same.get(atom.id, Atom(-4 - unknown - atom.id, atom.size)) for atom in atoms}
        yield value, tuple(replaced(axis, new) for axis in axes)


def _match(here: Axis, there: Axis, same: dict[int, Axis], apart: set[int]) -> None:
    """Which atoms of two terms of one dimension are the same; those of the first that have no equal are ``apart``."""
    parts = (_parts(here), _parts(there))
    if isinstance(there, Atom):
        same.setdefault(there.id, here)
    elif type(here) is type(there) and len(parts[0]) == len(parts[1]):
        for one, other in zip(*parts, strict=True):
            _match(one, other, same, apart)
    else:
        apart.update(atom.id for atom in atoms_of(here))


def _parts(axis: Axis) -> tuple[Axis, ...]:
    return () if isinstance(axis, Atom) else axis.parts if isinstance(axis, ConcatAxis) else axis.factors


def replaced(axis: Axis, new: Mapping[int, Axis]) -> Axis:
    """The term with other ones in the place of some atoms (``new``: atom id -> term)."""
    if isinstance(axis, Atom):
        return new.get(axis.id, axis)
    if isinstance(axis, ConcatAxis):
        return ConcatAxis(tuple(replaced(part, new) for part in axis.parts))
    return ProductAxis(tuple(replaced(factor, new) for factor in axis.factors))
