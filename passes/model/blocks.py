"""Finds the sequence of equal blocks (layers) of a model, and removes blocks from it."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...ir import FxpruneError, RequestError
from ...ir.graph import Graph
from ...runtime.streaming.blocks import BlockList


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model.

    Attributes:
        path: module path of the ``ModuleList`` that holds them.
        modules: the blocks in order.
    """

    path: str
    modules: tuple[nn.Module, ...]


def find_blocks(model: nn.Module, graph: Graph | None = None) -> Blocks:
    """The blocks: the ``ModuleList`` whose members hold the most parameters.

    Args:
        model: any module.
        graph: the model's graph; lists that do not run in it are ignored, such as a vision tower on text inputs.

    Raises:
        RequestError: when the model has no list of at least two blocks.
    """
    running = None if graph is None else {op.source.module for op in graph.ops}
    lists = [
        (sum(p.numel() for p in module.parameters()), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and (running is None or any(inner.startswith(f"{path}.") for inner in running))
    ]
    if not lists:
        raise RequestError(
            f"{type(model).__name__} has no sequence of layers", "drop works on models with a ModuleList"
        )
    _, path, module = max(lists, key=lambda item: item[0])
    return Blocks(path, tuple(module))


def read_elsewhere(graph: Graph, model: nn.Module) -> dict[str, str]:
    """The lists of blocks that cannot have their weights in memory one after the other, because code outside of a block
    reads some of it.

    Args:
        graph: the model's graph.
        model: any module.

    Returns:
        Module path of the list -> why.
    """
    blocks, parameters = BlockList.of(model), graph.parameter_of()
    holders = blocks.holders(model)
    inside = {id(module): path for path, block in blocks.modules.items() for module in block.modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, str] = {}
    for op in graph.ops:
        reader = inside.get(id(modules.get(op.source.module)))
        for name in {parameters[value].name for value in op.operands if value in parameters}:
            held = holders.get(name, frozenset())
            holder = next(iter(held)) if len(held) == 1 else None
            if holder is not None and holder != reader:
                where = op.source.module or "the model's own code"
                found.setdefault(holder.rpartition(".")[0], f"{name} is read in {where}")
    return found


def keep_blocks(model: nn.Module, blocks: Blocks, kept: Sequence[int]) -> dict[str, str]:
    """Remove blocks from a model in place; block indices stored in modules and the configuration are updated.

    Args:
        model: a module with a ``config``, as transformers' models have.
        blocks: its blocks.
        kept: indices of the blocks to keep, ascending.

    Returns:
        Every tensor name in the smaller model -> the tensor's name before.

    Raises:
        FxpruneError: when no change of the configuration's integers gives the shallower model.
    """
    config = _shallower(model, blocks, kept)
    holder, _, name = blocks.path.rpartition(".")
    renumber(blocks.modules, kept)
    setattr(model.get_submodule(holder), name, nn.ModuleList([blocks.modules[i] for i in kept]))
    _put_config(model, config)
    pattern = re.compile(re.escape(blocks.path) + r"\.(\d+)\.")
    return {now: pattern.sub(lambda found: f"{blocks.path}.{kept[int(found[1])]}.", now) for now in model.state_dict()}


def renumber(modules: Sequence[nn.Module], kept: Sequence[int]) -> None:
    """Update block indices: an attribute that equals the block's index in every block gets the new index."""
    for path, _ in modules[0].named_modules():
        members = [module.get_submodule(path) for module in modules if _has(module, path)]
        if len(members) < len(modules):
            continue
        for attribute, value in list(vars(members[0]).items()):
            if type(value) is int and all(vars(m).get(attribute) == i for i, m in enumerate(members)):
                for now, before in enumerate(kept):
                    setattr(members[before], attribute, now)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _shallower(model: nn.Module, blocks: Blocks, kept: Sequence[int]) -> Any:
    """The configuration of the shallower model, found by building it: changes as few integer fields as possible, and
    every list that has one entry per block."""
    count = len(blocks.modules)
    data = model.config.to_dict()  # type: ignore[operator, union-attr]
    gone = [f"{blocks.path}.{i}." for i in range(count) if i not in kept]
    want = {name for name in model.state_dict() if not name.startswith(tuple(gone))}
    pattern = re.compile(re.escape(blocks.path) + r"\.(\d+)\.")
    place = {before: now for now, before in enumerate(kept)}
    want = {pattern.sub(lambda found: f"{blocks.path}.{place[int(found[1])]}.", name) for name in want}
    lists = {k: [v[i] for i in kept] for k, v in data.items() if isinstance(v, list) and len(v) == count}
    fields = [k for k, v in data.items() if type(v) is int and v == count]
    for chosen in _subsets(fields):
        changed = {**data, **lists, **dict.fromkeys(chosen, len(kept))}
        if _names(model, changed) == want:
            return type(model.config).from_dict(changed)  # type: ignore[union-attr]
    raise FxpruneError(
        f"no field of {type(model.config).__name__} holds the number of layers of {type(model).__name__} ({count})",
        "leave the pass drop out; it does not support this architecture yet",
    )


def _subsets(fields: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(fields, size) for size in range(1, len(fields) + 1))


def _names(model: nn.Module, data: dict[str, Any]) -> set[str]:
    try:
        from transformers.initialization import no_init_weights

        with torch.device("meta"), no_init_weights():
            config = type(model.config).from_dict(copy.deepcopy(data))  # type: ignore[union-attr]
            return set(type(model)(config).state_dict())
    except Exception:  # a config or constructor may raise any error to refuse a value
        return set()


def _put_config(model: nn.Module, config: Any) -> None:
    """Replace the model's configuration in every module that shares it."""
    old = model.config
    config._attn_implementation = old._attn_implementation  # type: ignore[union-attr]
    if (experts := getattr(old, "_experts_implementation", None)) is not None:
        config._experts_implementation = experts
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, config)
