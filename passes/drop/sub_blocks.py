"""Sub-blocks: the parts of a layer that only add to the residual stream. Finds them in the graph, and removes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...ir import RequestError
from ...ir.graph import Graph, Op, Value
from ...ir.rules import FUSED_ATTENTION
from ...runtime.absence import Absence
from ...runtime.model.keywords import caching
from ...runtime.streaming.block_runner import BlockRunner
from ..model.blocks import Blocks
from ..model.forward import reading
from .drop import ATTENTION, MLP

ADD = ("aten.add", "aten.add_")


class AbsentModule(Absence, nn.Module):
    """Stands in place of a removed module."""


@dataclass(frozen=True)
class SubBlock:
    """Children of one layer whose only effect is one addition to the residual stream.

    Attributes:
        layer: index of the layer.
        path: path of the child whose output is added.
        members: paths of the children with parameters to remove: the one above, and those used by it only.
        kind: ``attention`` if it fills a cache or computes attention, otherwise ``mlp``.
        adds: number of additions in the layer from its output on, before anything else reads the residual stream.
        absences: for every member, the description of its replacement.
    """

    layer: int
    path: str
    members: tuple[str, ...]
    kind: str
    adds: int
    absences: tuple[dict[str, Any], ...]


def find_sub_blocks(runner: BlockRunner, blocks: Blocks, graph: Graph, tokens: torch.Tensor) -> tuple[SubBlock, ...]:
    """All sub-blocks, by layer and in execution order.

    Args:
        runner: of the model.
        blocks: its blocks.
        graph: its graph.
        tokens: int64 ``[N, L]``, for one run that records the inputs and outputs of the children.

    Raises:
        RequestError: when no layer has a part that only adds to the residual stream.
    """
    uses, calls = _Uses(graph), _observe(runner, blocks, tokens)
    candidates: list[list[SubBlock]] = []
    for index in range(len(blocks.modules)):
        layer = _Layer(index, f"{blocks.path}.{index}", uses)
        for add, end in layer.terms():
            feeders = layer.with_feeders(end)
            choices = ([path for path in calls if path in feeders], [end])
            parts = [_part(layer, add, end, [path for path in members if path in calls], calls) for members in choices]
            candidates.append([part for part in parts[: 1 if parts[0] == parts[1] else 2] if part is not None])
    runs = _run_without(runner, [part for parts in candidates for part in parts], tokens)
    firsts = (next((part for part in parts if part in runs), None) for parts in candidates)
    found = [part for part in firsts if part is not None]
    if not found:
        raise RequestError(
            f"the layers of {type(runner.model).__name__} have no sub-block that only adds to the residual stream",
            "drop whole layers: drop{layers=1}",
        )
    return tuple(found)


def _part(layer: _Layer, add: Op, end: str, members: Sequence[str], calls: Mapping[str, _ChildCall]) -> SubBlock | None:
    """The sub-block of some children; None when they have no weight matrix, or when their replacement would return
    zeros of another width."""
    members = [path for path in members if calls[path].parameters]
    if end not in calls or not any(calls[path].parameters > 1 for path in members):
        return None
    if calls[members[0]].width != calls[end].returned:
        return None
    attends = any(calls[path].caching for path in members) or layer.attends(members)
    absences = tuple(calls[path].absence() for path in members)
    return SubBlock(layer.index, end, tuple(members), ATTENTION if attends else MLP, layer.sums(add), absences)


def take_out(model: nn.Module, sub_blocks: Iterable[SubBlock]) -> dict[str, nn.Module]:
    """Replace the members by modules that add nothing; returns the replaced modules, by path."""
    return put_absences(model, absences_of(sub_blocks))


def absences_of(sub_blocks: Iterable[SubBlock]) -> dict[str, Mapping[str, Any]]:
    """Path of every member -> the description of its replacement."""
    return {
        path: absence
        for sub_block in sub_blocks
        for path, absence in zip(sub_block.members, sub_block.absences, strict=True)
    }


def put_absences(model: nn.Module, absences: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """Put modules that add nothing at these paths; returns the replaced modules, by path."""
    before = {}
    for path, absence in absences.items():
        before[path] = model.get_submodule(path)
        model.set_submodule(path, AbsentModule(dict(absence)).eval())
    return before


def _run_without(runner: BlockRunner, parts: Sequence[SubBlock], tokens: torch.Tensor) -> list[SubBlock]:
    """Those of some sub-blocks without which the model runs; the code of some layers reads weights of their
    children."""

    def feed(model: nn.Module) -> bool:
        try:
            model(input_ids=tokens[:1, :2], **caching(model, True))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, RuntimeError):
            return False
        return True

    runs = runner.run([feed] * len(parts), lambda number: taken_out(runner.model, [parts[number]]))
    return [part for part, alone in zip(parts, runs, strict=True) if alone]


@contextmanager
def taken_out(model: nn.Module, sub_blocks: Iterable[SubBlock]) -> Iterator[None]:
    """As :func:`take_out`; the modules are put back afterwards."""
    before = take_out(model, sub_blocks)
    try:
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)


class _Uses:
    """The operator that makes every value of a graph, and those that read it."""

    def __init__(self, graph: Graph) -> None:
        self.ops = graph.ops
        self.maker = {value: op for op in graph.ops for value in op.made}
        self.readers: dict[Value, list[Op]] = defaultdict(list)
        for op in graph.ops:
            for value in dict.fromkeys(op.operands):
                self.readers[value].append(op)
        self.outputs = set(graph.outputs)


class _Layer:
    """The operators of one layer, by the child that executed them."""

    def __init__(self, index: int, path: str, uses: _Uses) -> None:
        self.index, self.uses = index, uses
        self.child: dict[Op, str] = {}
        for op in uses.ops:
            if op.source.module == path:
                self.child[op] = ""
            elif op.source.module.startswith(f"{path}."):
                self.child[op] = path + "." + op.source.module[len(path) + 1 :].split(".")[0]
        self.children = list(dict.fromkeys(child for child in self.child.values() if child))

    def terms(self) -> Iterator[tuple[Op, str]]:
        """Additions in the layer's own code, each with a child whose output is used in this addition only."""
        for op, child in self.child.items():
            if child or op.packet not in ADD:
                continue
            terms = [arg for arg in op.args[:2] if isinstance(arg, Value)]
            if len(terms) == 2 and terms[0] is not terms[1] and terms[0].shape == terms[1].shape:
                for end in filter(None, map(self._origin, terms)):
                    if all(self._drains(value, {end}, op) for value in self._escaping(end)):
                        yield op, end

    def with_feeders(self, end: str) -> set[str]:
        """A child, and the children whose outputs are used by it only, directly or indirectly."""
        members, grown = {end}, True
        while grown:
            more = [child for child in self.children if child not in members and self._feeds_only(child, members)]
            members.update(more)
            grown = bool(more)
        return members

    def attends(self, members: Sequence[str]) -> bool:
        """Whether one of the children runs a fused attention operator."""
        return any(child in members and op.packet == FUSED_ATTENTION for op, child in self.child.items())

    def sums(self, add: Op) -> int:
        """Number of consecutive additions of the layer from ``add`` on, without other readers in between."""
        readers = self.uses.readers[add.result]
        while len(readers) == 1 and self.child.get(readers[0]) == "" and readers[0].packet in ADD:
            return 1 + self.sums(readers[0])
        return 1

    def _origin(self, term: Value) -> str:
        """The child that made a value, before operators of the layer's own code; "" when there is none."""
        op = self.uses.maker.get(term)
        while op is not None and self.child.get(op) == "" and op.packet not in ADD:
            inner = [value for value in op.operands if value in self.uses.maker]
            op = self.uses.maker[inner[0]] if len(inner) == 1 else None
        return self.child.get(op, "") if op is not None else ""

    def _escaping(self, child: str) -> list[Value]:
        """The values of a child that other operators read."""
        made = [value for op, owner in self.child.items() if owner == child for value in op.made]
        return [v for v in made if v in self.uses.outputs or any(self.child.get(r) != child for r in self._readers(v))]

    def _readers(self, value: Value) -> list[Op]:
        return self.uses.readers[value]

    def _feeds_only(self, child: str, members: set[str]) -> bool:
        escaping = self._escaping(child)
        return bool(escaping) and all(self._drains(value, members, None) for value in escaping)

    def _drains(self, value: Value, members: set[str], end: Op | None) -> bool:
        """Whether all readers of a value are ``end``, members, or layer code whose results also end there."""
        readers = self._readers(value)
        if value in self.uses.outputs or not readers:
            return False
        return all(
            reader is end
            or self.child.get(reader) in members
            or (
                self.child.get(reader) == ""
                and reader.packet not in ADD
                and all(self._drains(made, members, end) for made in reader.made)
            )
            for reader in readers
        )


@dataclass
class _ChildCall:
    """What a child was seen to take and to return.

    Attributes:
        parameters: the most dimensions that one of its parameters has, 0 when it has none.
        width: last extent of the first tensor that it takes.
        caching: whether it takes a cache.
        lengths: of the layers of the cache, before it ran.
        returned: last extent of the first tensor that it returns, -1 when it returns something else.
        outputs: as in :class:`~..runtime.absence.Absence`.
        filled: the layer of the cache that it fills.
    """

    parameters: int
    width: int
    caching: bool
    lengths: list[int]
    returned: int = -1
    outputs: int = 0
    filled: int | None = None

    @classmethod
    def of(cls, module: nn.Module, given: Sequence[Any]) -> _ChildCall:
        width = next((value.shape[-1] for value in given if isinstance(value, torch.Tensor)), 0)
        cache = _cache_in(given)
        return cls(max((p.ndim for p in module.parameters()), default=0), width, cache is not None, _lengths(cache))

    def leave(self, given: Sequence[Any], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        self.returned = first.shape[-1] if isinstance(first, torch.Tensor) else -1
        self.outputs = len(output) if isinstance(output, tuple) else 0
        lengths = _lengths(_cache_in(given))
        before = [*self.lengths, *[0] * (len(lengths) - len(self.lengths))]
        self.filled = next((i for i, length in enumerate(lengths) if length != before[i]), None)

    def absence(self) -> dict[str, Any]:
        return {"outputs": self.outputs, "cache": self.filled}


def _cache_in(given: Iterable[Any]) -> Any:
    return next((value for value in given if hasattr(value, "get_seq_length")), None)


def _lengths(cache: Any) -> list[int]:
    """Number of positions in every layer of a cache; 0 for layers without a count."""
    layers = getattr(cache, "layers", ())
    return [int(layer.get_seq_length()) if hasattr(layer, "get_seq_length") else 0 for layer in layers]


def _observe(runner: BlockRunner, blocks: Blocks, tokens: torch.Tensor) -> dict[str, _ChildCall]:
    """Path of every child of a layer that ran -> its recorded inputs and outputs, in execution order."""
    calls: dict[str, _ChildCall] = {}
    paths = {
        child: f"{blocks.path}.{i}.{n}" for i, block in enumerate(blocks.modules) for n, child in block.named_children()
    }

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[paths[module]] = _ChildCall.of(module, [*args, *kwargs.values()])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[paths[module]].leave([*args, *kwargs.values()], output)

    handles = [child.register_forward_pre_hook(enter, with_kwargs=True) for child in paths]
    handles += [child.register_forward_hook(leave, with_kwargs=True) for child in paths]
    try:
        runner.run([reading(tokens[:1], cache=True)], restart=calls.clear)
    finally:
        for handle in handles:
            handle.remove()
    return calls
