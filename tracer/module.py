"""Any ``torch.nn.Module``: where it comes from, what it is called with, and its trace."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..ir.errors import FxpruneError, RequestError, class_and_first_line
from .export import Traced, trace_model

Inputs = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, the positional arguments, or the keyword arguments of a forward."""

EXAMPLE_HINT = "write --example as 'float32[2,3,224,224]': a data type and extents; several inputs with commas between"
_TARGET = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_][\w.]*)")
_INPUT = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)\s*=\s*)?(?P<dtype>\w+)\s*\[(?P<shape>[\d,\s]*)\]\s*(?P<end>,|$)")
_BATCHES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049)
"""Batch extents to trace with: primes, so that an integer of the graph that is a multiple of one counts samples."""


@dataclass(frozen=True)
class Call:
    """How a forward is called.

    Attributes:
        args, kwargs: as the user gave them.
        bound: all of them as keyword arguments, in the order of the signature.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    bound: Mapping[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor among the arguments, nested ones too, in the order of the graph's inputs."""
        return [leaf for leaf in pytree.tree_leaves(dict(self.bound)) if isinstance(leaf, torch.Tensor)]

    @property
    def batch(self) -> int | None:
        """The extent that the first dimension of every tensor has, if it is the same; None otherwise."""
        extents = {tensor.shape[0] if tensor.dim() else None for tensor in self.tensors}
        return extents.pop() if len(extents) == 1 else None

    def resized(self, batch: int) -> Call:
        """The same call with another number of samples: the given ones again and again."""

        def resize(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            rows = torch.arange(batch, device=leaf.device) % leaf.shape[0]
            return leaf.index_select(0, rows)

        args, kwargs, bound = (pytree.tree_map(resize, part) for part in (self.args, dict(self.kwargs), self.bound))
        return Call(args, kwargs, bound)


def bind(module: nn.Module, inputs: Inputs) -> Call:
    """The call that example inputs stand for.

    Raises:
        RequestError: inputs that the signature of the forward does not take.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
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
                "wrap the module in one whose forward names its arguments",
            )
        else:
            named[name] = value
    call = Call(args, kwargs, named)
    if not call.tensors:
        raise RequestError("the example inputs hold no tensor", "give tensors of the shapes that the forward takes")
    return call


def trace_module(module: nn.Module, call: Call, *, batch: bool) -> Traced:
    """Trace a module.

    Args:
        module: in evaluation mode.
        call: what it is called with.
        batch: trace at a number of samples that nothing else in the graph has, named ``b`` among the extents, so that
            a backend can tell what follows it; otherwise at the extents of the call.

    Raises:
        FxpruneError: as :func:`~.export.trace_model`, and for a module that does not take that many samples.
    """
    if not batch or call.batch is None:
        return trace_model(module, call.bound)
    extent = next(_free_batches(module))
    return trace_model(module, _meta(call, extent, module), extents={"b": extent})


def _free_batches(module: nn.Module) -> Iterator[int]:
    taken = {extent for tensor in (*module.parameters(), *module.buffers()) for extent in tensor.shape}
    return (prime for prime in _BATCHES if not any(extent and extent % prime == 0 for extent in taken))


def _meta(call: Call, batch: int, module: nn.Module) -> dict[str, Any]:
    """The arguments with another number of samples, in no memory: one element, expanded."""
    tensor = next(iter(module.parameters()), torch.empty(0))

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.new_zeros(()).to(tensor.device).expand(batch, *leaf.shape[1:])

    found: dict[str, Any] = pytree.tree_map(resize, dict(call.bound))
    return found


def is_target(text: str) -> bool:
    """Whether a model is named as ``package.module:callable``."""
    return _TARGET.fullmatch(text) is not None


def resolve_module(text: str) -> nn.Module:
    """The module that ``package.module:callable`` names: what the callable returns, or the attribute itself.

    Packages are looked up where Python looks, the current directory included.

    Raises:
        RequestError: another form, no such module or attribute, a callable that raises, or something that is no
            ``torch.nn.Module``.
    """
    found = _named(text)
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise RequestError(
                f"{text}() fails: {class_and_first_line(error)}",
                "name a callable that needs no arguments and returns the module",
            ) from error
    if not isinstance(found, nn.Module):
        raise RequestError(f"{text} is no torch.nn.Module but {type(found).__name__}", "name what builds the module")
    return found


def resolve_function(text: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    Raises:
        RequestError: another form, no such module or attribute, or something that cannot be called.
    """
    found = _named(text)
    if not callable(found):
        raise RequestError(f"{text} cannot be called: it is {type(found).__name__}", "name a function")
    function: Callable[..., Any] = found
    return function


def _named(text: str) -> Any:
    match = _TARGET.fullmatch(text)
    if match is None:
        raise RequestError(f"{text!r} names no attribute of a module", "write it as package.module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    name, attribute = match.group("module", "attribute")
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's code does while it is imported
        raise RequestError(
            f"{name!r} cannot be imported: {class_and_first_line(error)}",
            "run it from the directory that holds the package",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise RequestError(f"{name!r} has no {attribute!r}", "name a function or class that returns the module")
        found = getattr(found, part)
    return found


def parse_example(text: str, seed: int = 0) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Example inputs from text: ``float32[2,3,224,224]``, or ``ids=int64[2,16],mask=bool[2,16]`` by name.

    Floating-point numbers are normally distributed, integers are 0 or 1, truth values are true.

    Raises:
        RequestError: naming what cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[str | None, torch.Tensor]] = []
    position = 0
    while position < len(text) or not found:
        match = _INPUT.match(text, position)
        if match is None:
            raise RequestError(f"--example {text!r} cannot be read from {text[position:]!r} on", EXAMPLE_HINT)
        dtype = getattr(torch, match["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise RequestError(f"--example {text!r}: {match['dtype']!r} is no data type of torch", EXAMPLE_HINT)
        shape = [int(extent) for extent in match["shape"].split(",") if extent.strip()]
        if dtype.is_floating_point:
            tensor = torch.randn(shape, generator=generator).to(dtype)
        else:
            tensor = torch.randint(0, 2, shape, generator=generator).to(dtype) | (dtype is torch.bool)
        found.append((match["name"], tensor))
        position = match.end()
    names = [name for name, _ in found]
    if all(names):
        return {str(name): tensor for name, tensor in found}
    if any(names):
        raise RequestError(f"--example {text!r} names some inputs and not others", EXAMPLE_HINT)
    return tuple(tensor for _, tensor in found)


def run(module: nn.Module, call: Call) -> list[torch.Tensor]:
    """The tensors that a module returns, nested ones too.

    Raises:
        FxpruneError: when it does not run on these inputs.
    """
    try:
        with torch.no_grad():
            output = module(*call.args, **call.kwargs)
    except Exception as error:
        raise FxpruneError(
            f"{type(module).__name__} does not run on the example inputs: {class_and_first_line(error)}",
            "give example inputs that the module's forward accepts",
        ) from error
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
