"""The parts of a model that have their weights in memory one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import nn

from ..tensors import tensors_by_every_name


@dataclass(frozen=True)
class BlockList:
    """The blocks of a model: the members of its outermost lists of modules.

    Attributes:
        modules: module path -> block, in the order of the model.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, without: Collection[str] = (), also: Iterable[str] = ()) -> BlockList:
        """Find them.

        Args:
            model: any module.
            without: paths of lists to leave out, because their members cannot run by themselves.
            also: paths of modules that are blocks too; none of them inside another, in a block or around one.
        """
        found: dict[str, nn.Module] = {}
        _collect(model, "", found)
        found = {path: module for path, module in found.items() if path.rpartition(".")[0] not in without}
        return cls({**found, **{path: model.get_submodule(path) for path in also}})

    def holder(self, path: str) -> str | None:
        """Path of the block that a module or a tensor is in; None outside of all blocks."""
        parts = path.split(".")
        return next((p for end in range(len(parts) + 1) if (p := ".".join(parts[:end])) in self.modules), None)

    def holders(self, model: nn.Module) -> dict[str, frozenset[str | None]]:
        """First name of every parameter and buffer of the model -> the blocks that hold it; None stands for outside."""
        first: dict[int, str] = {}
        found: dict[str, set[str | None]] = {}
        for name, tensor in tensors_by_every_name(model).items():
            found.setdefault(first.setdefault(id(tensor), name), set()).add(self.holder(name))
        return {name: frozenset(places) for name, places in found.items()}


def _collect(module: nn.Module, path: str, found: dict[str, nn.Module]) -> None:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList) and len(child) > 1 and next(child.parameters(), None) is not None:
            known = {id(block) for block in found.values()}
            for index, block in child.named_children():
                if id(block) not in known:
                    found[f"{inner}.{index}"] = block
                    known.add(id(block))
        else:
            _collect(child, inner, found)
