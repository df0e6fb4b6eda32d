"""The text form of a graph: deterministic, and readable by :mod:`fxprune.ir.parser`."""

from __future__ import annotations

import json
from collections.abc import Iterable

from .graph import Arg, DType, Graph, Op, Source, Value


def print_graph(graph: Graph, annotations: Iterable[str] = ()) -> str:
    """The graph as text.

    Args:
        graph: the graph.
        annotations: lines to append, such as groups; the parser skips them.

    Returns:
        Text that ``parse_graph`` converts to a graph with the same text.
    """
    names = {extent: name for name, extent in graph.extents.items()}
    inputs = ", ".join(f"%{v.name}: {_type(v, names)}" for v in graph.inputs)
    outputs = ", ".join(f"%{v.name}" for v in graph.outputs)
    extents = "".join(f" {name}={extent}" for name, extent in graph.extents.items())
    lines = [f"graph @{graph.name}({inputs}) -> {outputs}" + (f" where{extents}" if extents else "")]
    for parameter in graph.parameters:
        kind = "buffer" if parameter.is_buffer else "param"
        held = " = ".join(json.dumps(name) for name in (parameter.name, *parameter.aliases))
        lines.append(f"  %{parameter.value.name} = {kind} {held} : {_type(parameter.value, names)}")
    lines += [f"  %{value.name} = constant : {_type(value, names)}" for value in graph.constants]
    lines += [_op(op, names, "fold ") for op in graph.folded]
    lines += [_op(op, names, "") for op in graph.ops]
    return "\n".join([*lines, *annotations]) + "\n"


def print_arg(arg: Arg) -> str:
    """One argument as text."""
    if isinstance(arg, Value):
        return f"%{arg.name}"
    if isinstance(arg, tuple):
        return "[" + ", ".join(map(print_arg, arg)) + "]"
    if isinstance(arg, DType):
        return arg.name
    if isinstance(arg, bool) or arg is None:
        return {True: "true", False: "false", None: "none"}[arg]
    return json.dumps(arg) if isinstance(arg, str) else repr(arg)


def _op(op: Op, names: dict[int, str], keyword: str) -> str:
    results = ", ".join(f"%{v.name}" if v is not None else "_" for v in op.results)
    args = [print_arg(arg) for arg in op.args] + [f"{key}={print_arg(arg)}" for key, arg in op.kwargs.items()]
    types = ", ".join(_type(v, names) if v is not None else "_" for v in op.results)
    line = f"  {keyword}{results} = {op.target}({', '.join(args)}) : {types}"
    return line if op.source == Source() else f"{line}  # {op.source}"


def _type(value: Value, names: dict[int, str]) -> str:
    shape = ", ".join(names.get(extent, str(extent)) for extent in value.shape)
    return f"{value.dtype.name}[{shape}]"
