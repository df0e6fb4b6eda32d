"""Dry runs of a repair: a model runs with synthetic weights, to see which modules run, which integers they read, and
which shapes they return.

A dry run copies the model with synthetic weights: tensors on the meta device; or, for forwards that need values (a
rotary table that depends on the longest position), one zero expanded to the full shape. Both take no memory, so that a
large model can be tried several times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...ir.errors import FxpruneError, class_and_first_line
from ...runtime.experts import BATCHED, configs_of, set_experts
from ...runtime.model.keywords import cache_argument, returned_cache
from ...runtime.model.kinds import is_config
from ...runtime.tensors import Places

Reads = dict[str, set[str]]
Give = Callable[[Any, str, str], Any]


@dataclass(frozen=True)
class DryRunResult:
    """The result of one dry run.

    Attributes:
        shapes: shapes of the returned tensors that count.
        calls: paths of the modules that ran, in order.
    """

    shapes: tuple[tuple[int, ...], ...]
    calls: tuple[str, ...]

    def resized(self, last: Mapping[int, int]) -> DryRunResult:
        """The same with other last extents; ``last``: old -> new."""
        shapes = ((*shape[:-1], last.get(shape[-1], shape[-1])) if shape else shape for shape in self.shapes)
        return DryRunResult(tuple(shapes), self.calls)


@dataclass(frozen=True)
class DryRunFailure:
    """A dry run that raised an error: the module and the error."""

    path: str
    error: str


@dataclass(frozen=True)
class DryRunMode:
    """How a dry run works: the device of the synthetic weights, and whether to decode one more token from the cache."""

    device: str
    decode: bool


_COSTLY = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution", "aten::linear"})

ATTENTIONS = ("sdpa", "eager")
MODES = (DryRunMode("meta", True), DryRunMode("meta", False), DryRunMode("cpu", True), DryRunMode("cpu", False))


def synthetic_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """A synthetic tensor of ``shape`` that takes no memory."""
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.zeros((), dtype=dtype).expand(shape)


class _ShapesOnly(TorchDispatchMode):
    """Skips products of synthetic weights: only their shapes matter, and they would take as long as real products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.name() == "aten::view_as_complex":  # it needs a contiguous last dimension
            args = (args[0].contiguous(),)
        operands = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if func._schema.is_mutable and operands and not operands[0].is_meta and 0 in operands[0].stride():
            # All elements share one memory cell, so only a copy can be written to.
            func(*(arg.clone() if arg is operands[0] else arg for arg in args), **(kwargs or {}))
            return operands[0]
        if func.name().partition(".")[0] not in _COSTLY or any(tensor.is_meta for tensor in operands):
            return func(*args, **(kwargs or {}))
        result = func(*(arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args), **(kwargs or {}))
        return synthetic_tensor(tuple(result.shape), result.dtype, "cpu")


class DryRun:
    """A copy of a model with synthetic weights that can be resized, changed and run.

    Args:
        model: the module to copy; it is not changed.
        example: keyword arguments of its forward.
        outputs: keys of the outputs whose shapes must not change; all outputs when empty.

    Raises:
        FxpruneError: when the unchanged model does not run on ``example``.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Any], outputs: Sequence[str] = ()) -> None:
        self.outputs = outputs
        self.original: DryRunResult | None = None
        failures: list[DryRunFailure] = []
        for mode in MODES:
            self.mode = mode
            self.model = _weightless(model, mode.device)
            self.configs = configs_of(self.model)
            set_experts(self.configs, BATCHED)
            self.example = {k: _moved(v, mode.device) for k, v in example.items()}
            self.attentions: tuple[str | None, ...] = (None,)
            result = self._unchanged()
            if isinstance(result, DryRunResult):
                return
            failures.append(result)
        worst = failures[-1]
        raise FxpruneError(
            f"the model does not run on the example input: {worst.path or 'its root module'}: {worst.error}",
            "give example inputs that the model's forward accepts",
        )

    def _unchanged(self) -> DryRunResult | DryRunFailure:
        """Run the model as it is, and note what its modules read; once more where the forward swapped modules for
        others when it first ran."""
        for again in (True, False):
            parts = set(map(id, self.model.modules()))
            with reading(self.model) as reads:
                result = self.run()
                if isinstance(result, DryRunResult):
                    self.original, self.reads = result, reads
                    used = {getattr(config, "_attn_implementation", None) for config in self.configs}
                    same = (name for name in ATTENTIONS if used == {name} or self._once(name) == result)
                    self.attentions = tuple(same) or (None,)
            if not again or parts == set(map(id, self.model.modules())):
                break
        return result

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give the named parameters and buffers new shapes; tied parameters stay tied."""
        places = Places(self.model)
        for name, shape in shapes.items():
            places.replace(name, synthetic_tensor(shape, places.tensors[name].dtype, self.mode.device))

    def run(self) -> DryRunResult | DryRunFailure:
        """Run the forward in every attention implementation, and once more with the returned cache if there is one.

        The implementations read different attributes (one repeats the keys of a group itself, another lets torch do
        it), and a user may switch between them.
        """
        results = [self._once(attention) for attention in self.attentions]
        return next((result for result in results if result != self.original), results[0])

    def _once(self, attention: str | None) -> DryRunResult | DryRunFailure:
        for config in self.configs if attention else ():
            config._attn_implementation = attention
        calls: list[str] = []
        stack: list[str] = [""]
        caching = {"use_cache": True} if self.mode.decode and "use_cache" in self.example else {}
        with following(self.model, calls, stack), torch.no_grad(), _ShapesOnly():
            try:
                output = self.model(**{**self.example, **caching})
                returned = returned_cache(output)
                if self.mode.decode and returned is not None and "input_ids" in self.example:
                    last = self.example["input_ids"][:, -1:]
                    self.model(input_ids=last, **{cache_argument(self.model, returned[0]): returned[1]})
            except Exception as error:
                return DryRunFailure(stack[-1], class_and_first_line(error))
        return DryRunResult(_shapes(output, self.outputs), tuple(calls))


def _weightless(model: nn.Module, device: str) -> Any:
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            synthetic_tensor(tuple(parameter.shape), parameter.dtype, device), requires_grad=False
        )
    for tensor in model.buffers():
        real = device != "meta" and tensor.device.type != "meta"
        memo[id(tensor)] = tensor.to(device) if real else synthetic_tensor(tuple(tensor.shape), tensor.dtype, device)
    return copy.deepcopy(model, memo)


def _is_config(value: Any) -> bool:
    return is_config(value)


def _moved(value: Any, device: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.zeros_like(value, device=device) if value.device.type == "meta" else value.to(device)


def _shapes(output: Any, keys: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    if isinstance(output, torch.Tensor):
        return (tuple(output.shape),)
    counted = [key for key in output if not keys or key in keys] if isinstance(output, Mapping) else []
    values = [output[key] for key in counted] if isinstance(output, Mapping) else output
    return tuple(tuple(value.shape) for value in values if isinstance(value, torch.Tensor))


@contextmanager
def following(model: nn.Module, calls: list[str], stack: list[str]) -> Iterator[None]:
    """Record every module that runs; after an error, the top of ``stack`` is the innermost module that raised."""
    handles = []
    for path, module in model.named_modules():

        def enter(_module: nn.Module, _args: Any, path: str = path) -> None:
            calls.append(path)
            stack.append(path)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            stack.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reading(model: nn.Module, give: Give | None = None) -> Iterator[Reads]:
    """Record the integers that every module reads while it runs: its own attributes and configuration fields.

    Args:
        model: any module.
        give: makes what a module reads, of the value of an attribute, the path of the module and the attribute's name.
    """
    reads: Reads = {path: set() for path, _ in model.named_modules()}
    modules = dict(model.named_modules())
    undo: list[tuple[nn.Module, str, Any]] = []
    for path, module in modules.items():
        undo.append((module, "__class__", type(module)))
        for name, value in list(vars(module).items()):
            if path and _is_config(value):
                undo.append((module, name, value))
                setattr(module, name, _ConfigReader(value, name, reads[path]))
        module.__class__ = _reader_class(type(module), reads[path], path, give)
    try:
        yield reads
    finally:
        for module, name, value in reversed(undo):
            setattr(module, name, value)


def _reader_class(base: type[nn.Module], seen: set[str], path: str, give: Give | None) -> type[nn.Module]:
    def __getattribute__(self: Any, name: str) -> Any:
        value = base.__getattribute__(self, name)
        if is_integral(value):
            seen.add(name)
            return give(value, path, name) if give is not None else value
        return value

    return type(base.__name__, (base,), {"__getattribute__": __getattribute__, "__module__": base.__module__})


class _ConfigReader:
    """Wraps a configuration and records the integer fields that are read."""

    def __init__(self, shared: Any, name: str, seen: set[str]) -> None:
        self.__dict__.update(_shared=shared, _name=name, _seen=seen)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._shared, name)
        if is_integral(value):
            self._seen.add(f"{self._name}.{name}")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._shared, name, value)


def is_integral(value: Any) -> bool:
    """Whether a value can be a width: an integer or a tuple of integers, but not a bool."""
    if isinstance(value, tuple):
        return 0 < len(value) <= 8 and all(is_integral(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)
