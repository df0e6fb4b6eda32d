"""Leaves a module as it was before it ran, whatever its forward stores in it."""

from __future__ import annotations

import functools
import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

_LEAVES = (
    bool, int, float, complex, str, bytes, type(None), Tensor, type, ModuleType, torch.dtype, torch.device, fx.Graph,
)  # fmt: skip
_COMMON_LEAVES = frozenset({*_LEAVES, nn.Parameter})
"""Asked first: to ask whether a value is an instance of a kind of tensor takes long."""
_LIBRARY = sys.stdlib_module_names - {"collections", "types"}
"""Objects of Python's own library, such as loggers and locks, lead to what the module does not own."""

Undo = Callable[[], None]


@contextmanager
def left_as_found(*models: nn.Module, values: bool = False) -> Iterator[None]:
    """Afterwards, modules hold the objects that they held before: parameters, buffers and plain attributes, also those
    in lists, dicts, sets and objects that they refer to.

    A trace runs a forward on fake tensors, and a dry run on synthetic ones: what these leave in a module would be taken
    for the module's own later. References are copied here, not tensors, so that it costs the same for a model of any
    width.

    Args:
        models: the modules.
        values: whether a forward may also have written into tensors that are no parameters, because it runs on real
            ones; those are copied.
    """
    held = _containers(models)
    undo = [step for kept in held if (step := _undo(kept)) is not None]
    tensors = [(tensor, tensor.detach().clone()) for tensor in _written_to(models, held)] if values else []
    try:
        yield
    finally:
        for put_back in undo:
            put_back()
        for tensor, before in tensors:
            if not torch.equal(tensor, before):
                tensor.detach().copy_(before)


def _containers(models: Iterable[nn.Module]) -> list[Any]:
    """Everything that holds references, each once: lists, dicts, sets, and the attributes of objects."""
    found: set[int] = set()
    alive: list[Any] = []  # a freed object's id() may be used again
    waiting: list[Any] = list(models)
    while waiting:
        value = waiting.pop()
        if id(value) in found:
            continue
        kind = _kind_of(_type(value))
        if kind is _LEAF:
            continue
        found.add(id(value))
        alive.append(value)
        if kind is _VALUES:
            if not value:  # as most of what a module has is
                continue
            inner: Iterable[Any] = value.values()
        else:
            inner = value if kind is _ITEMS else [getattr(value, "__dict__", None), *_slots(value).values()]
        waiting += [part for part in inner if type(part) not in _COMMON_LEAVES]
    return alive


def _type(value: Any) -> Any:
    return type(value)  # as Any: mypy doubts that a type is hashable


_LEAF, _VALUES, _ITEMS, _OBJECT = range(4)


@functools.cache
def _kind_of(kind: Any) -> int:
    """Where values of a type hold references: nowhere, in their values, in their items, or in their attributes."""
    if issubclass(kind, _LEAVES):
        return _LEAF
    if issubclass(kind, dict):
        return _VALUES
    if issubclass(kind, list | tuple | set | frozenset | deque):
        return _ITEMS
    return _LEAF if _leads_nowhere(kind) else _OBJECT


def _leads_nowhere(kind: Any) -> bool:
    """Whether values of a type are functions, or belong to Python's own library."""
    routine = issubclass(kind, _ROUTINES) or (
        hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not hasattr(kind, "__delete__")
    )
    return routine or kind.__module__.partition(".")[0] in _LIBRARY


_ROUTINES = (BuiltinFunctionType, FunctionType, MethodType, MethodDescriptorType)


def _slots(value: Any) -> dict[str, Any]:
    names = _slots_of(_type(value))
    return {name: getattr(value, name) for name in names if hasattr(value, name)} if names else {}


@functools.cache
def _slots_of(kind: Any) -> tuple[str, ...]:
    names = (name for base in kind.__mro__ for name in _listed(getattr(base, "__slots__", ())))
    return tuple(name for name in names if name[:2] != "__")


def _listed(names: str | Iterable[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else list(names)


def _undo(held: Any) -> Undo | None:
    """What gives a container back the references that it holds now."""
    found = _restores(_type(held))
    if found is not None:
        # Most containers of a module are empty. For a model with thousands of them, few new objects matter.
        return partial(found[1], held, found[0](held)) if held else partial(_empty, held)
    slots = {} if isinstance(held, tuple | frozenset) else _slots(held)
    return partial(_restore_slots, held, slots) if slots else None


@functools.cache
def _restores(kind: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]] | None:
    """What copies the references of a container of this type, and what puts them back."""
    return next((how for base, how in _RESTORE.items() if issubclass(kind, base)), None)


def _empty(held: Any) -> None:
    if held:
        base: Any = OrderedDict if isinstance(held, OrderedDict) else next(k for k in _RESTORE if isinstance(held, k))
        base.clear(held)


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _restore_dict(held: dict[Any, Any], before: dict[Any, Any]) -> None:
    if _same(held.values(), before.values()) and _same(held, before):
        return
    base = OrderedDict if isinstance(held, OrderedDict) else dict  # a subclass may forbid or translate changes
    base.clear(held)
    for key, value in before.items():
        base.__setitem__(held, key, value)


def _restore_list(held: list[Any], before: list[Any]) -> None:
    if not _same(held, before):
        list.__setitem__(held, slice(None), before)


def _restore_set(held: set[Any], before: list[Any]) -> None:
    if held != set(before):
        set.clear(held)
        set.update(held, before)


def _restore_deque(held: deque[Any], before: list[Any]) -> None:
    if not _same(held, before):
        held.clear()
        held.extend(before)


_RESTORE: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    dict: (dict, _restore_dict), list: (list, _restore_list), set: (list, _restore_set), deque: (list, _restore_deque),
}  # fmt: skip
"""Kind of container -> what copies its references, and what puts these back."""


def _restore_slots(held: Any, before: dict[str, Any]) -> None:
    for name in _slots(held).keys() - before.keys():
        delattr(held, name)
    for name, value in before.items():
        if getattr(held, name, None) is not value:
            setattr(held, name, value)


def _written_to(models: Iterable[nn.Module], held: Iterable[Any]) -> list[Tensor]:
    """Buffers and tensors in plain attributes, each once; not parameters, and none without values."""
    parameters = {id(parameter) for model in models for parameter in model.parameters()}
    found: dict[int, Tensor] = {}
    for container in held:
        kind = _kind_of(_type(container))
        if kind is _OBJECT or not container:
            continue
        for value in container.values() if kind is _VALUES else container:
            if type(value) in _NO_TENSORS or not isinstance(value, Tensor):
                continue
            if not value.is_meta and id(value) not in parameters:
                found[id(value)] = value
    return list(found.values())


_NO_TENSORS = frozenset({*_COMMON_LEAVES, dict, list, tuple, OrderedDict} - {Tensor, nn.Parameter})
