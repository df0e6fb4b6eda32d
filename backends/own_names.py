"""Graph modules whose tensors keep their own names, also names that ``torch.fx.GraphModule`` uses for itself.

A submodule called ``code`` or ``graph`` cannot stand as an attribute where the class has one of that name. It stands
under another name there, while parameters, buffers and state dicts show its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram


@cache
def _taken(outermost: bool) -> frozenset[str]:
    """Attributes of every graph module, or of every module inside it."""
    example = fx.GraphModule(nn.Module(), fx.Graph()) if outermost else nn.Module()
    return frozenset(dir(example))


def _is_taken(part: str, outermost: bool) -> bool:
    """Whether a name is taken, or such a name with underscores behind it, so that one more can come off again."""
    taken = _taken(outermost)
    return any(part[:length] in taken and not part[length:].strip("_") for length in range(1, len(part) + 1))


def attribute_name(name: str) -> str:
    """Where the tensor of this name stands in a graph module."""
    parts = name.split(".")
    return ".".join(part + "_" * _is_taken(part, outermost=not at) for at, part in enumerate(parts))


def own_name(attribute: str) -> str:
    """The name of the tensor that stands there."""
    parts = enumerate(attribute.split("."))
    return ".".join(part[:-1] if part[-1:] == "_" and _is_taken(part[:-1], not at) else part for at, part in parts)


def attach(root: nn.Module, name: str, tensor: torch.Tensor) -> str:
    """Put a tensor into a module, with modules around it as its name says; a parameter becomes one, all else a buffer.

    Returns:
        The attribute path where it stands.
    """
    path = attribute_name(name)
    owner = root
    *folders, leaf = path.split(".")
    for folder in folders:
        if folder not in owner._modules:
            owner.add_module(folder, nn.Module())
        owner = owner.get_submodule(folder)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)
    return path


def graph_module(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """The module that runs a graph on the tensors in ``root``."""
    held = {**dict(root.named_parameters()), **dict(root.named_buffers())}
    as_they_are = all(own_name(path) == path for path in held)
    return (fx.GraphModule if as_they_are else GraphModuleWithOwnNames)(root, graph, name)


class GraphModuleWithOwnNames(fx.GraphModule):
    """A graph module that shows its tensors by their own names, where these cannot be attributes of it."""

    def _named_members(self, *args: Any, prefix: str = "", **kwargs: Any) -> Iterator[tuple[str, Any]]:
        start = prefix + "." if prefix else ""
        for path, member in super()._named_members(*args, **kwargs):
            yield start + own_name(path), member

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """As of any module."""
        found = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in [key for key in found if key.startswith(prefix)]:
            found[prefix + own_name(key[len(prefix) :])] = found.pop(key)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_again, super().__reduce__()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[prefix + attribute_name(key[len(prefix) :])] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _read_again(make: Callable[..., fx.GraphModule], given: tuple[Any, ...]) -> fx.GraphModule:
    read = make(*given)
    return GraphModuleWithOwnNames(read, read.graph, type(read).__name__)


def by_attributes(module: nn.Module) -> nn.Module:
    """The same graph and tensors in a module that shows where they stand, as ``torch.export`` has to see them."""
    if not isinstance(module, GraphModuleWithOwnNames):
        return module
    return fx.GraphModule(module, module.graph, type(module).__name__)


def rename_tensors(program: ExportedProgram) -> None:
    """Give the tensors of a program names that the graph module which torch makes of it can have."""
    for spec in (*program.graph_signature.input_specs, *program.graph_signature.output_specs):
        if spec.target is not None:
            spec.target = attribute_name(spec.target)
    tables: tuple[dict[str, Any], ...] = (program._state_dict, program.constants)
    for table in tables:
        for name in list(table):
            table[attribute_name(name)] = table.pop(name)


def unused(name: str, names: Mapping[str, Any] | frozenset[str]) -> str:
    """A name that is not in use."""
    while name in names:
        name += "_"
    return name
