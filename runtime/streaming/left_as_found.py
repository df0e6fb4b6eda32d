"""Leaves a module as it was before it ran, whatever its forward stores in it."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

_LEAVES = (
    bool, int, float, complex, str, bytes, type(None), Tensor, type, ModuleType, torch.dtype, torch.device, fx.Graph,
)  # fmt: skip
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
    undo = [step for kept in _containers(models) if (step := _undo(kept)) is not None]
    tensors = [(tensor, tensor.detach().clone()) for tensor in _written_to(models)] if values else []
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
    found: dict[int, Any] = {}
    alive: list[Any] = []  # a freed object's id() may be used again
    waiting: list[Any] = list(models)
    while waiting:
        value = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in found:
            continue
        if isinstance(value, dict):
            inner: Iterable[Any] = list(value.values())
        elif isinstance(value, list | tuple | set | frozenset | deque):
            inner = list(value)
        elif inspect.isroutine(value) or type(value).__module__.partition(".")[0] in _LIBRARY:
            continue
        else:
            inner = [getattr(value, "__dict__", None), *_slots(value).values()]
        found[id(value)] = value
        alive.append(value)
        waiting += [part for part in inner if not isinstance(part, _LEAVES)]
    return alive


def _slots(value: Any) -> dict[str, Any]:
    names = [name for base in type(value).__mro__ for name in _listed(getattr(base, "__slots__", ()))]
    return {name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)}


def _listed(names: str | Iterable[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else list(names)


def _undo(held: Any) -> Undo | None:
    """What gives a container back the references that it holds now."""
    if isinstance(held, dict):
        return partial(_restore_dict, held, list(held.items()))
    if isinstance(held, list):
        return partial(_restore_list, held, list(held))
    if isinstance(held, set):
        return partial(_restore_set, held, set(held))
    if isinstance(held, deque):
        return partial(_restore_deque, held, list(held))
    slots = {} if isinstance(held, tuple | frozenset) else _slots(held)
    return partial(_restore_slots, held, slots) if slots else None


def _same(now: Iterable[Any], before: Sequence[Any]) -> bool:
    found = list(now)
    return len(found) == len(before) and all(one is other for one, other in zip(found, before, strict=True))


def _restore_dict(held: dict[Any, Any], before: list[tuple[Any, Any]]) -> None:
    if _same(held, [key for key, _ in before]) and _same(held.values(), [value for _, value in before]):
        return
    base = OrderedDict if isinstance(held, OrderedDict) else dict  # a subclass may forbid or translate changes
    base.clear(held)
    for key, value in before:
        base.__setitem__(held, key, value)


def _restore_list(held: list[Any], before: list[Any]) -> None:
    if not _same(held, before):
        list.__setitem__(held, slice(None), before)


def _restore_set(held: set[Any], before: set[Any]) -> None:
    if held != before:
        set.clear(held)
        set.update(held, before)


def _restore_deque(held: deque[Any], before: list[Any]) -> None:
    if not _same(held, before):
        held.clear()
        held.extend(before)


def _restore_slots(held: Any, before: dict[str, Any]) -> None:
    for name in _slots(held).keys() - before.keys():
        delattr(held, name)
    for name, value in before.items():
        if getattr(held, name, None) is not value:
            setattr(held, name, value)


def _written_to(models: Iterable[nn.Module]) -> list[Tensor]:
    """Buffers and tensors in plain attributes, each once; not parameters, and none without values."""
    models = list(models)
    parameters = {id(parameter) for model in models for parameter in model.parameters()}
    found: dict[int, Tensor] = {}
    for held in _containers(models):
        for value in held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ():
            if isinstance(value, Tensor) and not value.is_meta and id(value) not in parameters:
                found[id(value)] = value
    return list(found.values())
