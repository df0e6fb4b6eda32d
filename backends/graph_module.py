"""Raising: make a ``torch.fx.GraphModule``, which runs, from a graph of the IR."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..ir.errors import FxpruneError
from ..ir.graph import Arg, DType, Graph, Op, Value
from ..runtime.dtypes import DTYPES
from .own_names import attach, graph_module, unused

TAKE = "fxprune.take"
_STRIDED_ONLY = {"aten.view": "aten.reshape", "aten._unsafe_view": "aten.reshape"}
"""A view needs a memory layout, which the IR does not record; a reshape does not need it."""


def raise_graph(
    graph: Graph,
    tensors: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    batch: int | None = None,
    inputs: Callable[[fx.Graph], list[fx.Node]] | None = None,
    outputs: Callable[[list[fx.Node]], Any] | None = None,
) -> fx.GraphModule:
    """Build a module that computes a graph at the shapes that it was traced with.

    Args:
        graph: a traced or a rewritten graph.
        tensors: parameter or buffer name -> its data, with the shape in the graph.
        constants: data of the constants that are neither parameters nor buffers, by the name of their value.
        dtype: convert every floating-point tensor, constant and cast to this type (float64 for exact comparison); keep
            the types when None.
        batch: the number of samples in the trace. Every integer in the graph that is a multiple of it is taken as a
            multiple of the number of samples, and computed from the first dimension of the first input.
        inputs: a function that makes one node for every input of the graph; a placeholder for each when None.
        outputs: a function that arranges the outputs; a tuple of all outputs when None.

    Returns:
        A module whose tensors have the names in the graph.

    Raises:
        KeyError: the data of a parameter is missing.
        FxpruneError: a constant was sliced in a way that works for one number of samples only.
    """
    return _Raising(graph, tensors, constants or {}, dtype, batch).run(inputs, outputs or tuple)


def compute(
    graph: Graph,
    tensors: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    *,
    batch: int | None = None,
) -> list[torch.Tensor]:
    """The outputs of a graph, without making a module of it.

    Args:
        graph, tensors, constants, batch: as in :func:`raise_graph`.
        inputs: in the order of the graph's inputs.

    Raises:
        KeyError, FxpruneError: as in :func:`raise_graph`; and whatever an operator raises.
    """
    return _Computing(graph, tensors, constants, None, batch).outputs(inputs)


def moved(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A module with its tensors on a device; of a raised graph, with what it creates too."""
    if isinstance(module, fx.GraphModule):
        for node in module.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": device}
        module.recompile()
    return module.to(device)


def constants_of(
    graph: Graph, tensors: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor]
) -> dict[Value, torch.Tensor]:
    """The data of the constants of a graph and of the results of its folded operators; without those that depend on
    tensors on the meta device.

    Args:
        graph: any graph.
        tensors: its parameters and buffers by name.
        constants: the data of its constants by the name of their value.
    """
    raising = _Raising(graph, tensors, constants, None, None)
    raising.leaves()
    for op in graph.folded:
        if all(value in raising.known and not raising.known[value].is_meta for value in op.operands):
            raising.fold(op)
    named = {parameter.value for parameter in graph.parameters}
    return {value: data for value, data in raising.known.items() if value not in named and not data.is_meta}


class _Raising:
    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, torch.Tensor],
        constants: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
        batch: int | None,
    ) -> None:
        self.graph, self.tensors, self.constants, self.dtype = graph, tensors, constants, dtype
        self.batch = batch
        held = next(iter(tensors.values()), None)
        self.device = torch.device("cpu") if held is None or held.is_meta else held.device
        self.root = torch.nn.Module()
        self.fx = fx.Graph()
        self.nodes: dict[Value, fx.Node] = {}
        self.known: dict[Value, torch.Tensor] = {}
        self.named = graph.parameter_of()
        self.outermost = frozenset(parameter.name.partition(".")[0] for parameter in graph.parameters)
        self.multiples: dict[int, fx.Node] = {}

    def run(
        self, inputs: Callable[[fx.Graph], list[fx.Node]] | None, outputs: Callable[[list[fx.Node]], Any]
    ) -> fx.GraphModule:
        given = self.graph.inputs
        made = inputs(self.fx) if inputs else [self.fx.placeholder(v.name.replace(".", "_")) for v in given]
        self.nodes.update(zip(given, made, strict=True))
        self.leaves()
        for op in self.graph.folded:
            if self._runs_late(op):
                self._emit(op)
            else:
                self.fold(op)
        for op in self.graph.ops:
            self._emit(op)
        self.fx.output(outputs([self._node(value) for value in self.graph.outputs]))
        return graph_module(self.root, self.fx, self.graph.name)

    def leaves(self) -> None:
        """Record the data of parameters, buffers and constants."""
        self.known |= {p.value: self._cast(self.tensors[p.name]) for p in self.graph.parameters}
        self.known |= {value: self._cast(self.constants[value.name]) for value in self.graph.constants}

    def _runs_late(self, op: Op) -> bool:
        """Whether a constant depends on the number of samples."""
        counts = op.target != TAKE and self._counts_samples((*op.args, *op.kwargs.values()))
        return counts or not all(map(self._is_constant, op.operands))

    def _is_constant(self, value: Value) -> bool:
        """Whether a value does not depend on the inputs or on the number of samples."""
        return value in self.known

    def _counts_samples(self, arg: Any) -> bool:
        if isinstance(arg, tuple):
            return any(map(self._counts_samples, arg))
        return bool(self.batch) and type(arg) is int and arg > 0 and arg % self.batch == 0  # type: ignore[operator]

    def _samples(self, times: int) -> Any:
        """A multiple of the number of samples."""
        if 1 not in self.multiples:
            first = self.nodes[self.graph.inputs[0]]
            self.multiples[1] = self.fx.call_function(torch.ops.aten.sym_size.int, (first, 0))
        if times not in self.multiples:
            self.multiples[times] = self.fx.call_function(operator.mul, (self.multiples[1], times))
        return self.multiples[times]

    def _cast(self, data: torch.Tensor) -> torch.Tensor:
        return data.detach().to(self.dtype) if self.dtype is not None and data.is_floating_point() else data.detach()

    def fold(self, op: Op) -> None:
        """Evaluate an operator whose operands are known."""
        function = function_of(op.target)
        with torch.no_grad():
            args, kwargs = self._arguments(op, self.known.__getitem__)
            made = function(*args, **kwargs, **self._created_at(op, function))
        for value, data in zip(op.results, made if _returns_many(function) else (made,), strict=False):
            if value is not None:
                self.known[value] = data

    def _node(self, value: Value) -> fx.Node:
        if value not in self.nodes:
            self.nodes[value] = self.fx.get_attr(self._attach(value, self.known[value]))
        return self.nodes[value]

    def _attach(self, value: Value, data: torch.Tensor) -> str:
        """Add a tensor to the module: a parameter or buffer under its own name, a constant as a buffer."""
        parameter = self.named.get(value)
        if parameter is None:
            name = unused(f"t{len(self.nodes)}_" + value.name.replace(".", "_"), self.outermost)
            self.root.register_buffer(name, data)
            return name
        if not parameter.is_buffer and (data.is_floating_point() or data.is_complex()):
            data = torch.nn.Parameter(data, requires_grad=self.tensors[parameter.name].requires_grad)
        return attach(self.root, parameter.name, data)

    def _emit(self, op: Op) -> None:
        function = function_of(op.target)
        args, kwargs = self._arguments(op, self._node)
        node = self.fx.call_function(function, args, {**kwargs, **self._created_at(op, function)})
        several = _returns_many(function)
        for index, value in enumerate(op.results):
            if value is not None:
                self.nodes[value] = self.fx.call_function(operator.getitem, (node, index)) if several else node

    def _created_at(self, op: Op, function: Callable[..., Any]) -> dict[str, torch.device]:
        """Where an operator without operands makes its tensor: beside those of the graph, unless that is the CPU."""
        schema = getattr(function, "_schema", None)
        creates = schema is not None and any(a.name == "device" for a in schema.arguments) and not any(op.operands)
        return {"device": self.device} if creates and self.device.type != "cpu" else {}

    def _arguments(self, op: Op, find: Callable[[Value], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if op.target == TAKE:  # its integers are positions, not numbers of samples
            data, dim, indices = op.args
            return (find(data), dim, *self._positions(data, dim, indices)), {}  # type: ignore[arg-type]
        args = tuple(self._argument(arg, find) for arg in op.args)
        return args, {key: self._argument(arg, find) for key, arg in op.kwargs.items()}

    def _positions(self, data: Value, dim: int, indices: tuple[int, ...]) -> tuple[list[int], int]:
        """The kept positions of a dimension, and 0. If the dimension also counts samples, the kept positions within one
        sample, and the extent of one sample.

        Raises:
            FxpruneError: samples are not the outermost part of the dimension.
        """
        extent = data.shape[dim]
        if not self.batch or self._is_constant(data) or extent % self.batch:
            return list(indices), 0
        every, own = extent // self.batch, indices[: len(indices) // self.batch]
        if indices != tuple(start + index for start in range(0, extent, every) for index in own):
            raise FxpruneError(
                f"dimension {dim} of the constant {data.name!r} holds samples within units: it cannot be sliced for "
                "any number of samples",
                "give an example with a single sample; the result will then accept a single sample only",
            )
        return list(own), every

    def _argument(self, arg: Arg, find: Callable[[Value], Any]) -> Any:
        if isinstance(arg, Value):
            return find(arg)
        if isinstance(arg, tuple):
            return [self._argument(item, find) for item in arg]
        if isinstance(arg, DType):
            return self.dtype if self.dtype is not None and arg.is_float else DTYPES[arg.name]
        if isinstance(arg, int) and self.batch and self._counts_samples(arg):
            return self._samples(arg // self.batch)
        return arg


class _Computing(_Raising):
    """Runs the operators one by one; of what they return, it keeps what is still read."""

    def outputs(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.leaves()
        self.known |= dict(zip(self.graph.inputs, inputs, strict=True))
        self.late = {*self.graph.inputs, *(value for op in self.graph.ops for value in op.made)}
        self.count = int(inputs[0].shape[0]) if self.batch else 0
        ops = [*self.graph.folded, *self.graph.ops]
        last = {value: place for place, op in enumerate(ops) for value in op.operands}
        kept = {*self.graph.outputs, *(value for value in self.known if value not in last)}
        for place, op in enumerate(ops):
            if self._runs_late(op):
                self.late.update(op.made)
            self.fold(op)
            for value in op.operands:
                if last[value] == place and value not in kept:
                    self.known.pop(value, None)
        return [self.known[value] for value in self.graph.outputs]

    def _is_constant(self, value: Value) -> bool:
        return value in self.known and value not in self.late

    def _samples(self, times: int) -> Any:
        return self.count * times


def take(data: torch.Tensor, dim: int, indices: list[int], every: int = 0) -> torch.Tensor:
    """The given positions of a dimension; with ``every``, the positions within each block of this many."""
    chosen = torch.tensor(indices, device=data.device)
    if every:
        starts = torch.arange(0, data.shape[dim], every, device=data.device)
        chosen = (starts[:, None] + chosen).flatten()
    return data.index_select(dim, chosen)


def as_complex(data: torch.Tensor) -> torch.Tensor:
    """Pairs of the last dimension as complex numbers, for any memory layout."""
    return torch.view_as_complex(data.contiguous())


def overwritten(data: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What ``data`` is after ``source`` was written to all of it; torch's own operator has no gradient."""
    del non_blocking
    return source.to(data.device, data.dtype).expand_as(data)


def _returns_many(function: Callable[..., Any]) -> bool:
    schema = getattr(function, "_schema", None)
    if schema is None:
        return False
    return len(schema.returns) > 1 or isinstance(schema.returns[0].type, torch.ListType)


def function_of(target: str) -> Callable[..., Any]:
    """The operator of a target such as ``aten.add.Tensor``; the default overload when none is named."""
    own: dict[str, Callable[..., Any]] = {TAKE: take, "aten.view_as_complex": as_complex, "aten.copy": overwritten}
    if target in own:
        return own[target]
    namespace, name, *overload = _STRIDED_ONLY.get(target, target).split(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    found: Callable[..., Any] = getattr(packet, overload[0] if overload else "default")
    return found
