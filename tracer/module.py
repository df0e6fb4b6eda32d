"""Any ``torch.nn.Module``: finds it by name, reads example inputs, traces it."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..ir.errors import FxpruneError, RequestError, class_and_first_line
from ..runtime.dtypes import SHORT_NAMES
from ..runtime.streaming.left_as_found import left_as_found
from .export import Traced, trace_model
from .named_objects import TARGET, named_object
from .tables import keep_tables

ExampleInputs = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, a tuple of positional arguments, or a dict of keyword arguments of a forward."""

EXAMPLE_HINT = "write --example as 'float32[2,3,224,224]': dtype and extents; separate several inputs by commas"
_INPUT = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)\s*=\s*)?(?P<dtype>\w+)\s*\[(?P<shape>[\d,\s]*)\]\s*(?P<end>,|$)")
LARGEST_EXAMPLE = 1 << 31
"""Elements of an example input: 8 GB of float32."""

_EXAMPLE_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SHORT_NAMES} | {
    "half": torch.float16, "float": torch.float32, "double": torch.float64, "int": torch.int32, "long": torch.int64,
}  # fmt: skip
"""Names of the dtypes that a graph can have, also those that torch has for C's."""

_BATCHES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049)
"""Batch extents for the trace: primes, so that multiples of one in the graph come from the number of samples."""


@dataclass(frozen=True)
class ForwardCall:
    """A call of a forward: its arguments.

    Attributes:
        args, kwargs: the arguments as the user gave them.
        bound: all arguments by name, in the order of the signature.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    bound: Mapping[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors in the arguments, also nested ones, in the order of the graph's inputs."""
        return [leaf for leaf in pytree.tree_leaves(dict(self.bound)) if isinstance(leaf, torch.Tensor)]

    @property
    def batch(self) -> int | None:
        """The first extent of every tensor, if it is the same for all; None otherwise."""
        extents = {tensor.shape[0] if tensor.dim() else None for tensor in self.tensors}
        return extents.pop() if len(extents) == 1 else None

    def resized(self, batch: int) -> ForwardCall:
        """The same call with another number of samples; the given samples are repeated."""

        def resize(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            rows = torch.arange(batch, device=leaf.device) % leaf.shape[0]
            return leaf.index_select(0, rows)

        args, kwargs, bound = (pytree.tree_map(resize, part) for part in (self.args, dict(self.kwargs), self.bound))
        return ForwardCall(args, kwargs, bound)


def bind(module: nn.Module, inputs: ExampleInputs) -> ForwardCall:
    """The call of a forward on example inputs.

    Raises:
        RequestError: for inputs that the signature of the forward does not accept.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if not isinstance(inputs, torch.Tensor | Mapping | Iterable):
        raise RequestError(
            f"the example inputs are of type {type(inputs).__name__}",
            "give one tensor, a tuple of the positional arguments, or a dict of the keyword arguments",
        )
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        args = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise RequestError(
            f"the example inputs do not fit {type(module).__name__}.forward{signature}: {error}",
            "give one tensor, a tuple of the positional arguments, or a dict of the keyword arguments",
        ) from None
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise RequestError(
                f"{type(module).__name__}.forward takes any number of arguments (*{name}), which cannot be traced",
                "wrap it in a module whose forward has named arguments",
            )
        else:
            named[name] = value
    call = ForwardCall(args, kwargs, named)
    if not call.tensors:
        raise RequestError("the example inputs hold no tensor", "give tensors that the forward accepts")
    return call


def trace_module(module: nn.Module, call: ForwardCall, *, batch: bool) -> Traced:
    """Trace a module.

    Args:
        module: in eval mode.
        call: the example inputs.
        batch: whether to trace with a number of samples that nothing else in the graph equals, named ``b`` in the
            extents, so that a backend knows which numbers depend on it; otherwise the extents of the call are used.

    Raises:
        FxpruneError: as in :func:`~.export.trace_model`, and for a module that does not accept that many samples.
    """
    if not batch or call.batch is None:
        traced = trace_model(module, call.bound)
    else:
        extent = next(_free_batches(module))
        traced = trace_model(module, _meta(call, extent, module), extents={"b": extent})
    keep_tables(traced.graph, module)
    return traced


def _free_batches(module: nn.Module) -> Iterator[int]:
    taken = {extent for tensor in (*module.parameters(), *module.buffers()) for extent in tensor.shape}
    return (prime for prime in _BATCHES if not any(extent and extent % prime == 0 for extent in taken))


def _meta(call: ForwardCall, batch: int, module: nn.Module) -> dict[str, Any]:
    """The arguments with another number of samples, without memory: one element, expanded."""
    tensor = next(iter(module.parameters()), torch.empty(0))

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.new_zeros(()).to(tensor.device).expand(batch, *leaf.shape[1:])

    found: dict[str, Any] = pytree.tree_map(resize, dict(call.bound))
    return found


def resolve_module(text: str) -> nn.Module:
    """The module that ``package.module:callable`` names: the result of the callable, or the attribute itself.

    Python's import path is searched, and then the current directory.

    Raises:
        RequestError: for another form, a missing module or attribute, a callable that raises, or a result that is not a
            ``torch.nn.Module``.
    """
    found = _named(text, "a function or class that returns the module")
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise RequestError(
                f"{text}() fails: {class_and_first_line(error)}",
                "give a callable without arguments that returns the module",
            ) from error
    if not isinstance(found, nn.Module):
        raise RequestError(f"{text} is not a torch.nn.Module but {type(found).__name__}", "give what builds the module")
    return found


def resolve_function(text: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises:
        RequestError: for another form, a missing module or attribute, or an object that cannot be called.
    """
    found = _named(text, "a function that it holds")
    if not callable(found):
        raise RequestError(f"{text} is not a function but {type(found).__name__}", "give package.module:function")
    function: Callable[..., Any] = found
    return function


def _named(text: str, wanted: str) -> Any:
    match = TARGET.fullmatch(text)
    if match is None:
        raise RequestError(
            f"{text!r} is not of the form package.module:callable", "write it as package.module:callable"
        )
    return named_object(match["module"], match["attribute"], wanted)


def parse_example(text: str, seed: int = 0) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Example inputs from text: ``float32[2,3,224,224]``, or with names ``ids=int64[2,16],mask=bool[2,16]``.

    Floating-point numbers are normally distributed, integers are 0 or 1, booleans are true.

    Raises:
        RequestError: with the part that cannot be read, a dtype that the graph does not have, or an input of more than
            ``LARGEST_EXAMPLE`` elements.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[str | None, torch.Tensor]] = []
    position = 0
    while position < len(text) or not found:
        match = _INPUT.match(text, position)
        if match is None:
            raise RequestError(f"--example {text!r} cannot be read: unexpected {text[position:]!r}", EXAMPLE_HINT)
        dtype = _EXAMPLE_DTYPES.get(match["dtype"])
        if dtype is None:
            raise RequestError(
                f"--example {text[:100]!r}: {match['dtype']!r} is not a torch dtype that a graph can hold", EXAMPLE_HINT
            )
        tensor = _made(dtype, _shape(match["shape"], text), generator)
        found.append((match["name"], tensor))
        position = match.end()
    names = [name for name, _ in found]
    if all(names):
        return {str(name): tensor for name, tensor in found}
    if any(names):
        raise RequestError(f"--example {text!r} has names for some inputs only", EXAMPLE_HINT)
    return tuple(tensor for _, tensor in found)


def _shape(text: str, example: str) -> list[int]:
    """Extents from text.

    Raises:
        RequestError: the tensor would have more than ``LARGEST_EXAMPLE`` elements.
    """
    digits = [extent.strip().lstrip("0") or "0" for extent in text.split(",") if extent.strip()]
    shape = [int(extent) for extent in digits if len(extent) < 20]
    if len(shape) < len(digits) or math.prod(extent or 1 for extent in shape) > LARGEST_EXAMPLE:
        raise RequestError(
            f"--example {example[:100]!r} has more than {LARGEST_EXAMPLE:,} elements", "give smaller extents"
        )
    return shape


def _made(dtype: torch.dtype, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def run(module: nn.Module, call: ForwardCall) -> list[torch.Tensor]:
    """The tensors that a module returns, also nested ones. What its forward stores in it is taken back.

    Raises:
        FxpruneError: when it does not run on these inputs.
    """
    with left_as_found(module, values=True):
        return run_on(module, call)


def run_on(module: nn.Module, call: ForwardCall) -> list[torch.Tensor]:
    """As :func:`run`; what its forward stores in it stays there for the next call."""
    return tensors_in(output_of(module, call))


def output_of(module: nn.Module, call: ForwardCall) -> Any:
    """What a module returns. What its forward stores in it stays there for the next call.

    Raises:
        FxpruneError: when it does not run on these inputs.
    """
    try:
        with torch.no_grad():
            return module(*call.args, **call.kwargs)
    except Exception as error:
        raise FxpruneError(
            f"{type(module).__name__} does not run on the example inputs: {class_and_first_line(error)}",
            "give example inputs that the module's forward accepts",
        ) from error


def tensors_in(output: Any) -> list[torch.Tensor]:
    """The tensors in what a module returns, also nested ones."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
