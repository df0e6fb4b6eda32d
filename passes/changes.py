"""What a pass changed: the structure of the model, which must follow from its decisions, and the values of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..ir.errors import FxpruneError
from ..ir.plan import Indices, Plan
from ..ir.text import print_graph
from ..runtime.model.held_values import held_values
from ..runtime.streaming.block_runner import BlockRunner
from ..runtime.tensors import tensors_by_every_name, tensors_by_name
from .base import Pass
from .state import Finished, State

TensorsByName = Mapping[str, torch.Tensor]


@contextmanager
def noted(step: Pass, state: State) -> Iterator[None]:
    """Inside, a pass runs; afterwards the ledger says what it decided and which values it changed."""
    ledger, before = state.ledger, _outline(state)
    known = len(ledger.decisions)
    residence = state.subject.residence
    digests = {} if step.keeps_values or residence is not None else _digests(stored_tensors(state.subject.model))
    yield
    made = tuple(ledger.decisions[known:])
    if residence is not None:
        ledger.changed = frozenset(residence.store.written)
    elif not step.keeps_values:
        now = _digests(stored_tensors(state.subject.model))
        # After a cut no digest of before says anything.
        ledger.changed |= {name for name, digest in now.items() if made or digest != digests.get(name)}
    ledger.finished.append(Finished(step.name, made, bool(made) or _same(before, _outline(state))))


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that are in its checkpoint, by their first names."""
    stored = model.state_dict().keys()
    return {name: tensor for name, tensor in tensors_by_name(model).items() if name in stored}


def changed_values(runner: BlockRunner, changed: frozenset[str]) -> dict[str, torch.Tensor]:
    """The tensors of a model whose values are not those of the source, sliced. They must not be changed.

    Args:
        runner: of the model.
        changed: as in :attr:`~fxprune.passes.state.Ledger.changed`.
    """
    if runner.residence is not None:
        # All at once: what is mapped without being writable is no memory of this process.
        return {name: read(writable=False) for name, read in runner.residence.store.written.items()}
    return {name: t.detach() for name, t in stored_tensors(runner.model).items() if name in changed and not t.is_meta}


def put_values(runner: BlockRunner, values: TensorsByName) -> None:
    """Give tensors of a model other values.

    Args:
        runner: of the model.
        values: tensors by their first names, as :func:`changed_values` gives them.

    Raises:
        FxpruneError: the model has no such tensor, or one of another shape or dtype.
    """
    tensors, elsewhere = stored_tensors(runner.model), runner.residence
    for name, value in values.items():
        if name not in tensors:
            raise FxpruneError(f"the model has no tensor '{name}'")
        mine = tensors[name]
        dtype = mine.dtype if elsewhere is None else elsewhere.dtype
        if (mine.shape, dtype, mine.is_meta) != (value.shape, value.dtype, elsewhere is not None):
            raise FxpruneError(f"'{name}' is {value.dtype} {list(value.shape)}, not {dtype} {list(mine.shape)}")
    for name, value in values.items():
        if elsewhere is not None:
            elsewhere.store.write(name, value)
        else:  # not in place: the model that passes look back at may have the same memory
            tensors[name].data = value.to(tensors[name].device, copy=True)


def kept_digest(model: nn.Module, changed: frozenset[str]) -> str:
    """sha256 of the values of the tensors that are not among ``changed``."""
    kept = {name: tensor for name, tensor in stored_tensors(model).items() if name not in changed}
    return _hashed(_digests(kept))


def structure_digest(state: State) -> str:
    """sha256 of what follows from the decisions of passes: the graph, the modules and the shapes of the tensors of the
    model, the plan, and the other parts of the ledger that tell of structure."""
    subject, ledger = state.subject, state.ledger
    first = {id(tensor): name for name, tensor in tensors_by_name(subject.model).items()}
    tensors = {
        name: [list(tensor.shape), str(tensor.dtype), first[id(tensor)]]
        for name, tensor in tensors_by_every_name(subject.model).items()
    }
    plan = ledger.plan or Plan()
    slices = {f"{name}:{dim}": kept for (name, dim), kept in plan.slices.items()}
    return _hashed(
        {
            "graph": hashlib.sha256(print_graph(subject.graph).encode()).hexdigest(),
            "modules": [[path, type(module).__qualname__] for path, module in subject.model.named_modules()],
            "configs": _configs(subject.model),
            "values": held_values(subject.model),
            "tensors": tensors,
            "plan": None if ledger.plan is None else [_indices(plan.keep), _indices(slices)],
            "repairs": ledger.repairs.to_json(),
            "consumers": ledger.consumers,
            "renamed": ledger.renamed,
        }
    )


def _outline(state: State) -> tuple[tuple[object, ...], object]:
    """What is replaced where structure changes, and what is changed in place."""
    subject, ledger = state.subject, state.ledger
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors_by_every_name(subject.model).items()}
    modules = [(path, type(module)) for path, module in subject.model.named_modules()]
    inside = (shapes, modules, _configs(subject.model), list(ledger.consumers), dict(ledger.renamed))
    return (subject.graph, subject.model, ledger.plan, ledger.repairs), inside


def _same(before: tuple[tuple[object, ...], object], after: tuple[tuple[object, ...], object]) -> bool:
    return all(old is new for old, new in zip(before[0], after[0], strict=True)) and before[1] == after[1]


def _configs(model: nn.Module) -> str:
    """The configurations of a model of transformers, as text, without where they were read from.

    Other attributes are not compared: forwards change some, and an artifact holds none but those of the repairs.
    """
    found: dict[str, Any] = {name: getattr(model, name, None) for name in ("config", "generation_config")}
    given = {name: _public(config.to_dict()) for name, config in found.items() if hasattr(config, "to_dict")}
    return json.dumps(given, sort_keys=True, default=lambda value: type(value).__qualname__)


def _public(value: Any) -> Any:
    """Nested data without what private keys hold, such as the path that a configuration was read from."""
    if isinstance(value, dict):
        return {str(key): _public(inner) for key, inner in value.items() if not str(key).startswith("_")}
    return [_public(inner) for inner in value] if isinstance(value, list | tuple) else value


def _indices(kept: Mapping[str, Indices]) -> dict[str, str]:
    return {name: hashlib.sha256(indices.tobytes()).hexdigest() for name, indices in kept.items()}


def _digests(tensors: TensorsByName) -> dict[str, str]:
    """sha256 of every tensor's bytes; of a tensor without values ""."""
    return {name: "" if tensor.is_meta else _bytes_hashed(tensor) for name, tensor in tensors.items()}


def _bytes_hashed(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()


def _hashed(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
