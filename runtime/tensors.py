"""The tensors of a module, parameters and buffers alike: by name, where they stand, cut by a plan."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..ir.plan import Indices, Plan


def tensors_by_name(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their first name; a tensor that modules share appears once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def tensors_by_every_name(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by all their names; a tensor that modules share appears once for each of them."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> its first name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors_by_every_name(model).items()}


def twin(model: nn.Module, device: str | None = None) -> nn.Module:
    """A module of its own whose tensors are those of the model, without copies of their values; on another ``device``,
    such as ``meta``, if one is given.

    What replaces a tensor of one leaves the other as it is. What writes *into* a tensor of one changes both: see
    :func:`made_private`.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        same = tensor.detach() if device is None else tensor.detach().to(device)
        memo[id(tensor)] = nn.Parameter(same, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else same
    return copy.deepcopy(model, memo)


def own_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model, also where it holds tensors that it computed from its parameters.

    The old ``torch.nn.utils.weight_norm`` keeps such a tensor, and a recurrent layer a list of them, with their graph,
    which torch refuses to copy.
    """
    memo: dict[int, Any] = {}
    held = [value for module in model.modules() for value in vars(module).values()]
    for value in (*held, *(item for items in held if isinstance(items, list | tuple) for item in items)):
        if isinstance(value, torch.Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def made_private(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors memory of their own, before they are written to, because a twin may have the same."""
    for tensor in tensors:
        tensor.data = tensor.data.clone()


class Places:
    """All places of a model's tensors, so that a tensor can be replaced in every module that shares it.

    Attributes:
        tensors: as in :func:`tensors_by_name`, without replaced tensors, so that their memory is free.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors = tensors_by_name(model)
        self._tables: dict[int, list[tuple[dict[str, Any], str]]] = defaultdict(list)
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in table.items():
                    self._tables[id(tensor)].append((table, name))

    def replace(self, name: str, new: torch.Tensor) -> None:
        """Put ``new`` in all places of the named tensor. A parameter stays a parameter."""
        old = self.tensors.pop(name)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for table, key in self._tables[id(old)]:
            table[key] = new


def slice_tensors(model: nn.Module, plan: Plan) -> None:
    """Replace every tensor of ``plan.slices`` by its slice, one at a time; keeps ties, dtype and device."""
    places = Places(model)
    for name, slices in plan.by_tensor().items():
        places.replace(name, _slice(places.tensors[name], slices))


def sliced(tensors: Mapping[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors, with those of ``plan.slices`` sliced; parameters stay parameters."""
    found = dict(tensors)
    for name, slices in plan.by_tensor().items():
        smaller = _slice(tensors[name], slices)
        is_parameter = isinstance(tensors[name], nn.Parameter)
        found[name] = nn.Parameter(smaller, tensors[name].requires_grad) if is_parameter else smaller
    return found


def _slice(tensor: torch.Tensor, slices: Mapping[int, Indices]) -> torch.Tensor:
    smaller = tensor.detach()
    for dim, kept in slices.items():
        smaller = smaller.index_select(dim, torch.tensor(kept, device=smaller.device))
    return smaller.contiguous()
