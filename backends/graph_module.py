"""Raising: a graph of the IR becomes a ``torch.fx.GraphModule`` that runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ..ir.graph import Arg, DType, Graph, Op, Value

DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8,
    "b8": torch.bool, "c64": torch.complex64, "c128": torch.complex128,
}  # fmt: skip
_STRIDED_ONLY = {"aten.view": "aten.reshape", "aten._unsafe_view": "aten.reshape"}
"""Views need a memory layout that lowering forgot; the reshape of the same name does not."""


def raise_graph(
    graph: Graph,
    tensors: Mapping[str, torch.Tensor],
    constants: Mapping[str, torch.Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> fx.GraphModule:
    """Build a module that computes what the graph says, at the shapes it was traced with.

    Args:
        graph: traced or rewritten.
        tensors: parameter or buffer name -> its data, of the shape the graph states.
        constants: nameless constants by name, real tensors.
        dtype: every floating-point tensor, constant and cast becomes this type (float64 for exact comparison); kept
            when None.

    Returns:
        A module that takes the graph's inputs by position and returns the tuple of its outputs.

    Raises:
        KeyError: when a parameter's data is missing.
    """
    return _Raising(graph, tensors, constants or {}, dtype).run()


class _Raising:
    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, torch.Tensor],
        constants: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        self.graph, self.tensors, self.constants, self.dtype = graph, tensors, constants, dtype
        self.root = torch.nn.Module()
        self.fx = fx.Graph()
        self.nodes: dict[Value, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        for value in self.graph.inputs:
            self.nodes[value] = self.fx.placeholder(value.name.replace(".", "_"))
        read = {value for op in self.graph.ops for value in op.operands} | set(self.graph.outputs)
        known = {p.value: self._cast(self.tensors[p.name]) for p in self.graph.parameters}
        known |= {value: self._cast(self.constants[value.name]) for value in self.graph.constants}
        self._fold(known)
        for value, data in known.items():
            if value in read:
                self._attach(value, data)
        for op in self.graph.ops:
            self._emit(op)
        self.fx.output(tuple(self.nodes[value] for value in self.graph.outputs))
        return fx.GraphModule(self.root, self.fx, self.graph.name)

    def _cast(self, data: torch.Tensor) -> torch.Tensor:
        return data.detach().to(self.dtype) if self.dtype is not None and data.is_floating_point() else data.detach()

    def _fold(self, known: dict[Value, torch.Tensor]) -> None:
        with torch.no_grad():
            for op in self.graph.folded:
                args = self._arguments(op.args, known)
                kwargs = {key: self._argument(arg, known) for key, arg in op.kwargs.items()}
                function = function_of(op.target)
                made = function(*args, **kwargs)
                for value, data in zip(op.results, made if _returns_many(function) else (made,), strict=False):
                    if value is not None:
                        known[value] = data

    def _attach(self, value: Value, data: torch.Tensor) -> None:
        name = f"t{len(self.nodes)}_" + value.name.replace(".", "_")
        if data.is_floating_point():
            self.root.register_parameter(name, torch.nn.Parameter(data, requires_grad=False))
        else:
            self.root.register_buffer(name, data)
        self.nodes[value] = self.fx.get_attr(name)

    def _emit(self, op: Op) -> None:
        args = self._arguments(op.args, self.nodes)
        kwargs = {key: self._argument(arg, self.nodes) for key, arg in op.kwargs.items()}
        function = function_of(op.target)
        node = self.fx.call_function(function, args, kwargs)
        several = _returns_many(function)
        for index, value in enumerate(op.results):
            if value is not None:
                self.nodes[value] = self.fx.call_function(operator.getitem, (node, index)) if several else node

    def _arguments(self, args: tuple[Arg, ...], known: Mapping[Value, Any]) -> tuple[Any, ...]:
        return tuple(self._argument(arg, known) for arg in args)

    def _argument(self, arg: Arg, known: Mapping[Value, Any]) -> Any:
        if isinstance(arg, Value):
            return known[arg]
        if isinstance(arg, tuple):
            return [self._argument(item, known) for item in arg]
        if isinstance(arg, DType):
            return self.dtype if self.dtype is not None and arg.is_float else DTYPES[arg.name]
        return arg


def take(data: torch.Tensor, dim: int, indices: list[int]) -> torch.Tensor:
    """The listed positions of a dimension."""
    return data.index_select(dim, torch.tensor(indices, device=data.device))


def as_complex(data: torch.Tensor) -> torch.Tensor:
    """Pairs of the last dimension as complex numbers, in whatever order they lie in memory."""
    return torch.view_as_complex(data.contiguous())


def _returns_many(function: Callable[..., Any]) -> bool:
    schema = getattr(function, "_schema", None)
    if schema is None:
        return False
    return len(schema.returns) > 1 or isinstance(schema.returns[0].type, torch.ListType)


def function_of(target: str) -> Callable[..., Any]:
    """The operator of a target such as ``aten.add.Tensor``; without an overload, the default one."""
    own: dict[str, Callable[..., Any]] = {"fxprune.take": take, "aten.view_as_complex": as_complex}
    if target in own:
        return own[target]
    namespace, name, *overload = _STRIDED_ONLY.get(target, target).split(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    found: Callable[..., Any] = getattr(packet, overload[0] if overload else "default")
    return found
