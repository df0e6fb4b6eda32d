"""Lowering: an exported program becomes a graph of the IR."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from ..ir.graph import Arg, DType, Graph, Op, Parameter, Source, Value
from ..runtime.dtypes import SHORT_NAMES
from .functional import AFTERWARDS
from .named_objects import directories
from .randomness import DRAWS

_PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy"})
"""Arguments about the device or memory layout of a tensor, which the IR leaves out."""

_IDENTITIES = frozenset({
    "aten.alias", "aten.contiguous", "aten.clone", "aten.detach", "aten.detach_", "aten.lift_fresh",
    "aten.lift_fresh_copy", "aten.positive",
})  # fmt: skip
_DROPOUTS = frozenset(f"aten.{kind}dropout" for kind in ("", "feature_", "alpha_", "feature_alpha_"))
"""Identities in eval mode, unless the forward always sets ``train=True``."""
_CASTS = frozenset({"aten.to", "aten._to_copy", "aten.type_as", "aten.float", "aten.double", "aten.half", "aten.bool"})
_WRITES = frozenset({"BUFFER_MUTATION", "PARAMETER_MUTATION"})
"""Outputs of a program that it writes to a tensor of the module; not every torch has both."""
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')


def lower(
    program: ExportedProgram,
    name: str,
    extents: Mapping[str, int],
    aliases: Mapping[str, tuple[str, ...]],
    outputs: Collection[str] = (),
    *,
    nodes: fx.Graph | None = None,
) -> Graph:
    """Lower an exported program.

    Moves between dtypes or devices, asserts and other identities are removed. Subgraphs with gradient or autocast
    switches are inlined. Operators that depend on no input and no parameter are folded. What the forward writes to a
    tensor of the module is copied to it at the end, in the graph too, so that both have the same widths.

    Args:
        program: functional, with static shapes.
        name: name of the graph.
        extents: named extents of the example inputs.
        aliases: parameter name -> its other names; all names of a tied tensor map to one value.
        outputs: keys of the outputs that count; all outputs when empty.
        nodes: the graph of the program in another form; its own when None.

    Returns:
        The graph, without dead operators.
    """
    graph = Graph(name, extents=dict(extents))
    return _Lowering(program, graph, aliases).run(outputs, nodes or program.graph_module.graph)


class _Lowering:
    def __init__(self, program: ExportedProgram, graph: Graph, aliases: Mapping[str, tuple[str, ...]]) -> None:
        self.program, self.graph = program, graph
        self.first_name = {alias: first for first, others in aliases.items() for alias in (first, *others)}
        self.aliases = aliases
        self.values: dict[str, Value] = {}
        self.constant: set[Value] = set()
        self.sources: dict[tuple[str, str], Source] = {}
        self.written: dict[fx.Node, fx.Node] = {}

    def run(self, keys: Collection[str], nodes: fx.Graph) -> Graph:
        module = self.program.graph_module
        environment: dict[fx.Node, Any] = {}
        self.written = _written(self.program, nodes)
        specs = iter(self.program.graph_signature.input_specs)
        for node in nodes.nodes:
            if node.op == "placeholder":
                environment[node] = self._leaf(node, next(specs))
        outputs = self._emit(module, nodes, environment)
        kept = [self._write(environment[place], environment.get(after)) for place, after in self.written.items()]
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        made = tuple(out for out, kind in zip(outputs, kinds, strict=True) if kind == OutputKind.USER_OUTPUT)
        returned = self._named(made, keys)  # a buffer or parameter that is written to is not an output
        self.graph.outputs = [value for value in _flat(returned) if isinstance(value, Value)]
        _drop_dead(self.graph, [value for value in kept if value is not None])
        _separate_uses(self.graph)
        return self.graph

    def _named(self, outputs: Any, keys: Collection[str]) -> Any:
        """The outputs under some keys; all outputs without keys."""
        spec = self.program.call_spec.out_spec
        if not keys or spec is None or spec.num_leaves != len(outputs):
            return outputs
        returned = spec.unflatten(outputs)
        return [value for key in keys for value in pytree.tree_leaves(returned[key])]

    def _leaf(self, node: fx.Node, spec: Any) -> Any:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            return spec.arg.value if hasattr(spec.arg, "value") else None
        if spec.kind == InputKind.USER_INPUT:
            value = self._value(node.name, node.meta["val"])
            self.graph.inputs.append(value)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = self.first_name.get(spec.target, spec.target)
            if name in self.values:
                return self.values[name]
            value = self.values[name] = self._value(name, node.meta["val"])
            is_buffer = spec.kind == InputKind.BUFFER
            self.graph.parameters.append(Parameter(value, name, self.aliases.get(name, ()), is_buffer))
            if is_buffer and node not in self.written:
                self.constant.add(value)
        else:
            value = self._value(spec.target or node.name, node.meta["val"])
            self.graph.constants.append(value)
            self.constant.add(value)
        return value

    def _value(self, name: str, tensor: torch.Tensor) -> Value:
        return Value(name, DType(SHORT_NAMES[tensor.dtype]), tuple(int(extent) for extent in tensor.shape))

    def _emit(self, module: fx.GraphModule, nodes: fx.Graph, environment: dict[fx.Node, Any], prefix: str = "") -> Any:
        """Lower the nodes of one graph module; returns the values of its output node."""
        for node in nodes.nodes:
            if node.op == "call_function":
                environment[node] = self._call(node, environment, prefix)
            elif node.op == "get_attr":
                environment[node] = getattr(module, str(node.target), None)
            elif node.op == "output":
                return self._lookup(node.args[0], environment)
        raise AssertionError("a graph without an output node")

    def _call(self, node: fx.Node, environment: dict[fx.Node, Any], prefix: str) -> Any:
        target = str(node.target)
        args = [self._lookup(arg, environment) for arg in node.args]
        if getattr(node.target, "__name__", "") == "getitem":
            return args[0][args[1]]
        submodules = [arg for arg in args if isinstance(arg, fx.GraphModule)]
        if submodules:  # wrap_with_set_grad_enabled, wrap_with_autocast and their like
            operands = args[args.index(submodules[0]) + 1 :]
            inner = submodules[0]
            places = [n for n in inner.graph.nodes if n.op == "placeholder"]
            return self._emit(inner, inner.graph, dict(zip(places, operands, strict=False)), f"{prefix}{node.name}.")
        if "assert" in target or target.startswith(("aten.sym_", "<built-in", "aten._set_grad")):
            return None
        kwargs = {key: self._lookup(arg, environment) for key, arg in node.kwargs.items()}
        return self._operator(node, target, args, kwargs, prefix)

    def _operator(self, node: fx.Node, target: str, args: list[Any], kwargs: dict[str, Any], prefix: str) -> Any:
        packet = ".".join(target.split(".")[:2])
        made: Any = node.meta.get("val")
        identity = packet in _IDENTITIES or (packet in _DROPOUTS and not all(args[1:3]))
        if identity and isinstance(args[0], Value):
            return args[0]
        if packet in _CASTS:
            dtype = DType(SHORT_NAMES[made.dtype])
            if args[0].dtype == dtype:
                return args[0]
            target, args, kwargs = "aten.to.dtype", [args[0], dtype], {}
        tuple_result = isinstance(made, tuple | list)
        tensors = list(made) if tuple_result else [made]
        names = [f"{prefix}{node.name}" + (f".{i}" if tuple_result else "") for i in range(len(tensors))]
        results = [
            self._value(n, t) if isinstance(t, torch.Tensor) else None for n, t in zip(names, tensors, strict=True)
        ]
        op = Op(
            target.removesuffix(".default"),
            tuple(_argument(arg) for arg in args),
            {key: _argument(arg) for key, arg in kwargs.items() if key not in _PLACEMENT},
            tuple(results),
            self._source(node),
        )
        folds = packet not in DRAWS and all(value in self.constant for value in op.operands)
        (self.graph.folded if folds else self.graph.ops).append(op)
        if folds:
            self.constant.update(op.made)
        return results if tuple_result else results[0]

    def _write(self, tensor: Value, after: Any) -> Value | None:
        """Copy what a tensor of the module holds afterwards to it; returns the copy."""
        if not isinstance(after, Value) or after is tensor:
            return None
        copy = Value(f"{tensor.name}.afterwards", tensor.dtype, tensor.shape)
        self.graph.ops.append(Op("aten.copy", (tensor, after), {}, (copy,)))
        return copy

    def _lookup(self, arg: Any, environment: dict[fx.Node, Any]) -> Any:
        if isinstance(arg, fx.Node):
            return environment.get(arg)
        if isinstance(arg, list | tuple):
            return tuple(self._lookup(item, environment) for item in arg)
        if isinstance(arg, dict):
            return tuple(self._lookup(item, environment) for item in arg.values())
        return arg

    def _source(self, node: fx.Node) -> Source:
        stack = node.meta.get("nn_module_stack") or {}
        module = str(list(stack.values())[-1][0]) if stack else ""
        key = (module, node.meta.get("stack_trace") or "")
        if key not in self.sources:
            self.sources[key] = _innermost(module, key[1])
        return self.sources[key]


def _written(program: ExportedProgram, nodes: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Placeholders of the tensors of the module that the program writes to -> what they hold afterwards."""
    signature = program.graph_signature
    returned: Any = next(iter(nodes.find_nodes(op="output"))).args[0]
    pairs = zip(returned, signature.output_specs, strict=True)
    after = {spec.target: node for node, spec in pairs if spec.kind.name in _WRITES}
    places = zip(nodes.find_nodes(op="placeholder"), signature.input_specs, strict=False)
    own = ((place, spec) for place, spec in places if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER))
    found = {place: place.meta.get(AFTERWARDS) or after.get(spec.target) for place, spec in own}
    return {place: node for place, node in found.items() if node is not None}


def _innermost(module: str, trace: str) -> Source:
    """The innermost line of the stack trace outside torch, with the file relative to its import root."""
    frames = [match.groupdict() for match in _FRAME.finditer(trace)]
    own = [frame for frame in frames if "/torch/" not in frame["file"]] or frames
    if not own:
        return Source(module)
    frame = own[-1]
    return Source(module, _below_root(frame["file"]), int(frame["line"]), frame["code"].strip())


def _below_root(file: str) -> str:
    path = PurePath(file)
    for root in sorted((r for r in (*sys.path, *directories()) if r), key=len, reverse=True):
        if path.is_relative_to(root):
            return str(path.relative_to(root)).replace(" ", "_")
    return path.name.replace(" ", "_")


def _argument(arg: Any) -> Arg:
    if isinstance(arg, torch.dtype):
        return DType(SHORT_NAMES[arg])
    if isinstance(arg, list | tuple):
        return tuple(_argument(item) for item in arg)
    if isinstance(arg, Value | DType | bool | int | float | str) or arg is None:
        return arg
    return None if isinstance(arg, torch.device | torch.memory_format | torch.layout) else str(arg)


def _flat(outputs: Any) -> Iterable[Any]:
    for item in outputs if isinstance(outputs, list | tuple) else (outputs,):
        if isinstance(item, list | tuple):
            yield from _flat(item)
        else:
            yield item


def _drop_dead(graph: Graph, written: Iterable[Value] = ()) -> None:
    """Remove unused operators, constants and buffers; what is written to tensors of the module is used.

    Unused operators that combine a weight with data are kept: the module's own forward runs them too, so the weight
    must shrink together with its input.
    """
    live: set[Value] = {*graph.outputs, *written}
    weights = _weights(graph)
    for ops in (graph.ops, graph.folded):
        kept = []
        for op in reversed(ops):
            meet = {value in weights for value in op.operands} == {True, False}
            if meet or any(value in live for value in op.made):
                live.update(op.operands)
                kept.append(op)
        ops[:] = kept[::-1]
    graph.constants = [value for value in graph.constants if value in live]
    graph.parameters = [p for p in graph.parameters if not p.is_buffer or p.value in live]


def _weights(graph: Graph) -> set[Value]:
    """Parameters, and values computed from parameters only, such as transposes."""
    weights = {parameter.value for parameter in graph.parameters if not parameter.is_buffer}
    for op in graph.ops:
        operands = list(op.operands)
        if operands and all(value in weights for value in operands):
            weights.update(op.made)
    return weights


def _separate_uses(graph: Graph) -> None:
    """Give every use of a constant its own copy, so that each copy can be sliced differently.

    A table that all layers read, such as the ALiBi slopes, would tie the heads of all layers together. Constants whose
    extents all come from the example (masks) are not copied, because they are never sliced.
    """
    fixed = {1, *graph.extents.values()}
    leaves = {*graph.constants, *(value for op in graph.folded for value in op.made)}
    seen: set[Value] = set()
    for op in graph.ops:
        copies: dict[Value, Value] = {}
        for value in dict.fromkeys(op.operands):
            if value not in leaves or all(extent in fixed for extent in value.shape):
                continue
            if value in seen:
                copy = Value(f"{value.name}.use{len(graph.folded)}", value.dtype, value.shape)
                graph.folded.append(Op("aten.alias", (value,), {}, (copy,), op.source))
                copies[value] = copy
            seen.add(value)
        if copies:
            op.args = tuple(_substitute(arg, copies) for arg in op.args)
            op.kwargs = {key: _substitute(arg, copies) for key, arg in op.kwargs.items()}


def _substitute(arg: Arg, copies: Mapping[Value, Value]) -> Arg:
    if isinstance(arg, Value):
        return copies.get(arg, arg)
    return tuple(_substitute(item, copies) for item in arg) if isinstance(arg, tuple) else arg
