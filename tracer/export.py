"""Tracing: the only place that calls ``torch.export``."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from ..ir.errors import FxpruneError, first_line
from ..ir.graph import Graph
from ..runtime.experts import BATCHED, experts_as
from ..runtime.model.keywords import caching
from ..runtime.quiet import quiet
from ..runtime.streaming.left_as_found import left_as_found
from .calls import calls
from .frequencies import steady_frequencies
from .functional import functional, writes
from .known_values import known_inputs
from .lower import lower
from .randomness import drawing
from .trace_errors import explained

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107)


@dataclass(frozen=True)
class Traced:
    """A graph and the data that its text form does not hold.

    Attributes:
        graph: the lowered program.
        constants: graph name of a constant -> its tensor.
        example: the inputs of the trace, on the meta device.
        outputs: keys of the model's outputs that count; empty when all count.
        written: the name of a parameter that the forward changes in place; empty if there is none.
    """

    graph: Graph
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    written: str = ""

    def refuse_written(self) -> None:
        """Of a model whose weights are brought into memory when they are needed, what it writes to them is lost.

        Raises:
            FxpruneError: it writes to its own weights.
        """
        if self.written:
            raise FxpruneError(
                f"the model writes to its own weights when it runs: {self.written}", "keep them: give --offload none"
            )


def trace_model(
    model: torch.nn.Module,
    example: Mapping[str, Any],
    *,
    extents: Mapping[str, int] | None = None,
    name: str = "",
    output: str = "",
    beside: Collection[str] = (),
    values: Mapping[str, torch.Tensor] | None = None,
) -> Traced:
    """Trace a module by ``torch.export`` (non-strict) and lower the program to a graph.

    Args:
        model: in eval mode; a model on the meta device needs no memory for weights.
        example: keyword arguments of ``forward`` on the model's device.
        extents: named extents of the example (``b``, ``s``), for the text form.
        name: name of the graph; the class name when empty.
        output: key of the only output that counts; all outputs when empty.
        beside: keys of outputs that do not count if there are others.
        values: inputs on the CPU whose values may decide what runs, if nothing else will do; the graph then holds where
            the answers are the same.

    Raises:
        FxpruneError: when ``torch.export`` cannot trace the model, with its reason.
    """
    name = name or type(model).__name__
    try:
        program, written, graph, outputs = _lowered(model, example, name, extents or {}, output, beside)
    except Exception as error:
        found = _by_values(error, model, example, values or {}, (name, extents or {}, output, beside))
        if found is None:
            raise _refusal(error, model) from error
        program, written, graph, outputs = found
    drawn = drawing(graph)
    if drawn:
        raise FxpruneError(
            f"{type(model).__name__} draws random numbers as it runs ({drawn}): no smaller model could be checked",
            "call eval() on the module, or remove the random numbers from its forward",
        )
    constants = {key: data for key, data in program.constants.items() if isinstance(data, torch.Tensor)}
    return Traced(graph, constants, dict(example), outputs, written)


_Lowered = tuple[ExportedProgram, str, Graph, tuple[str, ...]]
_BY_VALUE = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)


class _NoStaticGraphError(Exception):
    """A program has extents that depend on values."""


def _lowered(
    model: torch.nn.Module, example: Mapping[str, Any], *how: Any,
) -> _Lowered:  # fmt: skip
    name, extents, output, beside = how
    program, written, nodes = _program(model, example)
    outputs = _counting(program, output, beside)
    try:
        return program, written, lower(program, name, extents, _aliases(model), outputs, nodes=nodes), outputs
    except GuardOnDataDependentSymNode as error:
        raise _NoStaticGraphError from error


def _by_values(
    error: BaseException, model: torch.nn.Module, example: Mapping[str, Any], values: Mapping[str, Any], how: Any
) -> _Lowered | None:
    """A second trace, of a model that asked for a value: those that depend on no input are known, and some inputs'."""
    if not any(isinstance(cause, _BY_VALUE) for cause in _causes(error)):
        return None
    try:
        with known_inputs(model, values):
            return _lowered(model, example, *how)
    except Exception:  # the first error says what the model asked
        return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _refusal(error: Exception, model: torch.nn.Module) -> FxpruneError:
    if isinstance(error, _NoStaticGraphError):
        return FxpruneError(
            f"{type(model).__name__} has tensors whose extents depend on values, which no static graph can hold",
            "use an implementation of its layers with static shapes, such as batched experts",
        )
    where = explained(error, model)
    return FxpruneError(
        f"torch.export cannot trace {type(model).__name__}{f', at {where}' if where else ''}: {first_line(error)}",
        "rewrite that code so that tensor values do not decide what runs, or trace a submodule; --debug shows more",
    )


def _program(model: torch.nn.Module, example: Mapping[str, Any]) -> tuple[ExportedProgram, str, torch.fx.Graph]:
    """The program of a module, the name of a parameter that it changes in place, and its graph without in-place
    operators. The module stays as it is."""
    with (
        left_as_found(model), experts_as(BATCHED, model), steady_frequencies(model),
        quiet(warn=False), redirect_stderr(io.StringIO()), torch.no_grad(), _ListsAsSlices(),
    ):  # fmt: skip
        program = torch.export.export(model, (), dict(example), strict=False)
        written = _written_weight(program)
        nodes = None if _mutates_inside(program) else functional(program.graph_module.graph)
        if nodes is None:
            program = program.run_decompositions({})
            nodes = program.graph_module.graph
    return program, written, nodes


def _counting(program: ExportedProgram, output: str, beside: Collection[str]) -> tuple[str, ...]:
    """Keys of the outputs that count; all if none would be left; empty when the outputs have no keys."""
    spec = program.call_spec.out_spec
    returned = spec.unflatten(range(spec.num_leaves)) if spec is not None and (output or beside) else None
    if not isinstance(returned, Mapping):
        return ()
    return tuple(key for key in returned if (key == output if output else key not in beside)) or tuple(returned)


def trace_causal_lm(model: torch.nn.Module, **inputs: Any) -> Traced:
    """Trace a causal language model on token ids, with batch and length different from all its dimensions.

    Only the logits count as output, so that hidden states and other states that it returns can be pruned.

    Args:
        model: a transformers model whose ``forward`` takes ``input_ids``.
        inputs: further keyword arguments of ``forward``.
    """
    example, extents = token_example(model)
    return trace_model(model, {**example, **caching(model, False), **inputs}, extents=extents, output="logits")


def token_example(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Token ids for a trace of a causal language model, by argument name, and the extents in them: a number of samples
    and a length that no dimension of the model has."""
    taken = {extent for p in model.parameters() for extent in p.shape} | set(integers(vars(model.config)))
    batch, length = (p for p, _ in zip(free_primes(taken), range(2), strict=False))
    device = next(model.parameters()).device
    rows = batch * rows_per_sample(model.config)
    ids = torch.zeros(rows, length, dtype=torch.long, device=device)
    return {"input_ids": ids}, {"b": batch, "s": length}


def rows_per_sample(config: Any) -> int:
    """Rows of token ids per sample: the number of parallel codebooks of an audio model, otherwise 1.

    ``calls.json`` names the configuration field of this number.
    """
    field = calls()["rows_per_sample"].get(config.model_type)
    return int(getattr(config, field)) if field else 1


def free_primes(taken: set[int]) -> Iterator[int]:
    """Small primes that are not in ``taken``, smallest first."""
    return (p for p in _PRIMES if p not in taken)


def integers(config: Any) -> Iterator[int]:
    """All integers in a configuration, nested ones too."""
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif isinstance(value, dict | list | tuple):
            yield from integers(value)


def _aliases(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """For every parameter with several names: first name -> the others."""
    names: dict[int, list[str]] = {}
    tensors: Iterable[tuple[str, torch.Tensor]] = model.named_parameters(remove_duplicate=False)
    for name, tensor in tensors:
        names.setdefault(id(tensor), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


def _mutates_inside(program: ExportedProgram) -> bool:
    """Whether an operator of a submodule, such as the body of a loop, changes its operand in place."""
    inner = [module for module in program.graph_module.modules() if module is not program.graph_module]
    return any(writes(node) for module in inner for node in getattr(module, "graph", torch.fx.Graph()).nodes)


def _written_weight(program: ExportedProgram) -> str:
    """The name of a parameter that the forward changes in place; empty if there is none."""
    weights: Mapping[str, str] = program.graph_signature.inputs_to_parameters
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            schema = getattr(node.target, "_schema", None)
            for argument, given in zip(schema.arguments if schema is not None else (), node.args, strict=False):
                if argument.is_write and (name := weights.get(_viewed(given))) is not None:
                    return name
    return ""


def _viewed(given: Any) -> str:
    """The name of what an operand is a view of; its own when it is none."""
    while isinstance(given, torch.fx.Node) and given.op == "call_function":
        schema = getattr(given.target, "_schema", None)
        if schema is None or not schema.arguments or schema.arguments[0].alias_info is None:
            break
        given = given.args[0]
    return getattr(given, "name", "")


class _ListsAsSlices(TorchFunctionMode):
    """Converts ``x[..., [-1], :]`` to ``x[..., -1:, :]``: a list of one position becomes a slice, which has a rule. On
    the meta device the value of an index tensor would be lost."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1]
            parts = index if isinstance(index, tuple) else (index,)
            if sum(isinstance(part, list | torch.Tensor) for part in parts) == 1:
                args = (args[0], tuple(_as_slice(part) for part in parts))
        return func(*args, **(kwargs or {}))


def _as_slice(part: Any) -> Any:
    if isinstance(part, list) and len(part) == 1 and type(part[0]) is int:
        return slice(part[0], part[0] + 1 or None)
    return part
