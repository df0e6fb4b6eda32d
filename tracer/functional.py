"""In-place operators become ones that return a new tensor, on the exported graph itself.

torch does this by tracing the program a second time, which costs more than the export. Here one walk over the graph is
enough: the tensors of an exported program say which of them share memory, so that after a write every other name of
that memory is computed again from the new contents, where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

aten: Any = torch.ops.aten

_KEEP_DTYPE = frozenset({
    "copy", "fill", "zero", "index_put", "masked_fill", "masked_scatter", "scatter", "scatter_add", "index_fill",
    "index_copy", "index_add",
})  # fmt: skip
"""Operators whose result has the dtype of their first operand, whatever the others have."""
_TO_BOOL = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not", "logical_xor"})
_RESHAPES = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
})  # fmt: skip
_PARTS = frozenset({"split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk"})

_NEARLY_NEW = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
"""In evaluation mode they return their operand itself, but a traced one seems to be new."""
_UNDONE: dict[str, Any] = {
    "view": aten.view.default, "transpose": aten.transpose.int, "permute": aten.permute.default,
    "slice": aten.slice_scatter.default, "select": aten.select_scatter.default,
}  # fmt: skip
"""A view -> the operator that makes its operand of it."""
_PLACED = frozenset({"slice", "select"})
"""Views of a part: the rest of the operand stays."""


AFTERWARDS = "fxprune_afterwards"
"""The key in ``meta`` of a placeholder that is written to, of the node for what it holds when the program ends."""


class _NotExpressibleError(Exception):
    """A write that this walk cannot express."""


def functional(graph: fx.Graph) -> fx.Graph | None:
    """The same program without in-place operators; the graph itself when it has none.

    Args:
        graph: of an exported program, with ``val`` of every node; it stays as it is.

    Returns:
        A graph whose placeholders say in ``meta`` what they hold afterwards, if they are written to.
        None when some write cannot be expressed here: to a view whose inverse is not known, inside a submodule, or one
        that changes the dtype of its result.
    """
    if not any(writes(node) for node in graph.nodes):
        return graph
    try:
        return _Walk(graph).run()
    except _NotExpressibleError:
        return None


def writes(node: fx.Node) -> bool:
    """Whether a node is an in-place operator."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class _Walk:
    """Copies a graph node by node; every node of the old graph has a node of the new one for what it holds now.

    Attributes:
        memory: old node -> the memory that it is a name of.
        parents: old node -> the name that it is a view of; roots: memory -> its first name.
        frozen: memory that must not be written to here.
        joined: memory -> the one that it is, although the program takes it for new.
        versions: memory -> how often it was written to.
        now: old node -> its new node, and the version of the memory that it is right for.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.old, self.new = graph, fx.Graph()
        self.memory: dict[fx.Node, int] = {}
        self.parents: dict[fx.Node, fx.Node] = {}
        self.roots: dict[int, fx.Node] = {}
        self.frozen: set[int] = set()
        self.joined: dict[int, int] = {}
        self.versions: dict[int, int] = {}
        self.now: dict[fx.Node, tuple[fx.Node, int]] = {}

    def run(self) -> fx.Graph:
        for node in self.old.nodes:
            if writes(node):
                self._write(node)
            else:
                self._note(node)
                self._keep(node, self.new.node_copy(node, self._current))
        places = (graph.find_nodes(op="placeholder") for graph in (self.old, self.new))
        for node, copied in zip(*places, strict=True):
            if self.versions.get(self.memory.get(node, -1), 0):
                copied.meta[AFTERWARDS] = self._current(node)
        return self.new

    def _note(self, node: fx.Node) -> None:
        """Note which memory a node is a name of, and of which operand it is a view."""
        operands = {self.memory[other]: other for other in reversed(node.all_input_nodes) if other in self.memory}
        held = {self._memory(value) for value in pytree.tree_leaves(node.meta.get("val"))}
        if _kind(node) in _NEARLY_NEW and len(operands) == 1 and not all(node.args[1:3]):
            (memory,) = held
            self.joined[memory] = next(iter(operands))  # type: ignore[index]
            held = {*operands}
        if not isinstance(node.meta.get("val"), torch.Tensor):  # several results; those that are views of an operand
            views = held & operands.keys()
            if len(views) > 1:
                self.frozen |= {memory for memory in views if memory is not None}
            held = views if len(views) == 1 else {None}
        (memory,) = held or {None}
        if memory is None:
            return
        self.memory[node] = memory
        if memory not in self.versions:
            self.roots[memory], self.versions[memory] = node, 0
        elif memory in operands:
            parent = operands[memory]
            several = not isinstance(parent.meta.get("val"), torch.Tensor)
            self.parents[node] = self.parents[parent] if several else parent

    def _memory(self, value: Any) -> int | None:
        memory = int(value.untyped_storage()._cdata) if isinstance(value, torch.Tensor) else None
        return self.joined.get(memory, memory) if memory is not None else None

    def _keep(self, node: fx.Node, copied: fx.Node) -> None:
        self.now[node] = copied, self.versions.get(self.memory.get(node, -1), 0)

    def _current(self, node: fx.Node) -> fx.Node:
        """What an old node holds now. A view of memory that was written to since is taken again."""
        found, version = self.now[node]
        memory = self.memory.get(node)
        if memory is None or version == self.versions[memory]:
            return found
        if node not in self.parents:
            raise _NotExpressibleError
        again = (
            self._current(self.parents[node])
            if writes(node) or _same_layout(node, self.parents[node])
            else self.new.node_copy(node, self._current)
        )
        self._keep(node, again)
        return again

    def _write(self, node: fx.Node) -> None:
        target = _plain_overload(node)
        written = node.args[0]
        if target is None or not isinstance(written, fx.Node) or written not in self.memory:
            raise _NotExpressibleError
        args, kwargs = (fx.map_arg(given, self._current) for given in (node.args, node.kwargs))
        made = self._call(node, target, args, node, kwargs)
        memory = self.memory[written]
        if memory in self.frozen:
            raise _NotExpressibleError
        self.memory[node], self.parents[node] = memory, written
        after, name = {node: made, written: made}, written
        while name is not self.roots[memory]:  # what every larger view of the memory becomes
            if name not in self.parents:
                raise _NotExpressibleError
            parent = self.parents[name]
            after[parent] = self._inverse(name, parent, after[name], node)
            name = parent
        self.versions[memory] += 1
        for name, value in after.items():
            self._keep(name, value)

    def _inverse(self, name: fx.Node, parent: fx.Node, value: fx.Node, at: fx.Node) -> fx.Node:
        """What an operand becomes when ``name``, a view of it, becomes ``value``."""
        if writes(name) or _same_layout(name, parent):
            return value
        if name.kwargs or name.meta["val"].dtype != parent.meta["val"].dtype:
            raise _NotExpressibleError
        kind, args = _kind(name), name.args[1:]
        if kind == "getitem":
            kind, args = _place(name)
        if kind in _RESHAPES:
            kind, args = "view", (list(parent.meta["val"].shape),)
        elif kind == "permute":
            args = (_inverted(args[0]),)
        elif kind not in _UNDONE:
            raise _NotExpressibleError
        before = () if kind not in _PLACED else (self._current(parent),)
        return self._call(at, _UNDONE[kind], (*before, value, *args), parent)

    def _call(self, at: fx.Node, target: Any, args: Any, like: fx.Node, kwargs: Any = None) -> fx.Node:
        made = self.new.call_function(target, args, kwargs)
        made.meta = {**at.meta, "val": like.meta["val"]}
        return made


def _same_layout(one: fx.Node, other: fx.Node) -> bool:
    """Whether two names of the same memory are the same tensor."""
    a, b = one.meta.get("val"), other.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return (a.dtype, a.shape, a.stride(), a.storage_offset()) == (b.dtype, b.shape, b.stride(), b.storage_offset())


def _kind(node: fx.Node) -> str:
    """The name of an operator without namespace and overload."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else getattr(node.target, "__name__", "")


def _place(name: fx.Node) -> tuple[str, tuple[Any, ...]]:
    """One of several parts, as a slice or as a position: which of the two, and the arguments after the operand."""
    parted, index = name.args[0], int(name.args[1])  # type: ignore[arg-type]
    if not isinstance(parted, fx.Node) or _kind(parted) not in _PARTS:
        raise _NotExpressibleError
    position = 1 if _kind(parted) == "unbind" else 2
    given: Any = parted.args[position] if len(parted.args) > position else parted.kwargs.get("dim", 0)
    dim = int(given) % parted.args[0].meta["val"].dim()  # type: ignore[union-attr]
    if _kind(parted) == "unbind":
        return "select", (dim, index)
    extents = [int(part.shape[dim]) for part in parted.meta["val"]]
    return "slice", (dim, sum(extents[:index]), sum(extents[: index + 1]))


def _inverted(order: Any) -> list[int]:
    places = [axis % len(order) for axis in order]
    return [places.index(axis) for axis in range(len(order))]


def _plain_overload(node: fx.Node) -> Callable[..., Any] | None:
    """The operator that returns what an in-place one writes, if it gives a tensor of the same dtype."""
    schema = node.target._schema  # type: ignore[union-attr]
    namespace, _, name = schema.name.partition("::")
    written = [argument.is_write for argument in schema.arguments]
    plain = name.removesuffix("_")
    if namespace != "aten" or plain == name or plain.endswith("_") or written != [True] + [False] * (len(written) - 1):
        return None
    found = getattr(getattr(aten, plain, None), schema.overload_name or "default", None)
    if found is None or found._schema.is_mutable or not _keeps_dtype(plain, node):
        return None
    result: Callable[..., Any] = found
    return result


def _keeps_dtype(plain: str, node: fx.Node) -> bool:
    own = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    if plain in _KEEP_DTYPE:
        return True
    if plain in _TO_BOOL:
        return bool(own == torch.bool)
    others = {
        other.meta["val"].dtype for other in node.all_input_nodes if isinstance(other.meta.get("val"), torch.Tensor)
    }
    return all(
        other == own or (own.is_floating_point and not (other.is_floating_point or other.is_complex))
        for other in others
    )
