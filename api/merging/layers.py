"""The layers that PEFT put into a model, each merged into the layer that it wraps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...ir.errors import FxpruneError, RequestError, first_line
from ...runtime.tolerances import MERGED_ROUNDINGS, roundings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ReadParameter = Callable[[nn.Parameter], torch.Tensor | None]
"""A parameter that only has a shape -> its value, in memory of its own; None for one that has its value."""

MERGE_IT = "merge it into the weights with PEFT, if it can be merged, and give the result"

_PROBE_ROWS = 4


def merged_values(model: nn.Module, read: ReadParameter | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Take the layers of PEFT out of a model again, merged, one after the other.

    A sum is computed in float32 and rounded once, to the dtype of the model.

    Args:
        model: with layers of PEFT whose adapter weights have values. It is changed: afterwards it has its own layers.
        read: gives the values of the model's own parameters, which are :func:`hollow`, and are so again afterwards;
            None when they have their values.

    Yields:
        Name of a parameter in the model without adapters, and its merged value, float32.

    Raises:
        RequestError: the adapter is switched off.
        FxpruneError: PEFT cannot merge a layer, or the merged layer gives other outputs.
    """
    places = _outermost(model)
    for name, layer in places.items():
        _check_active(name, layer)
        plain = _base_of(layer)
        dtypes = {key: parameter.dtype for key, parameter in plain.named_parameters()}
        if read is not None:
            _fill(plain, read)
        merged = _merged(name, layer)
        model.set_submodule(name, merged)
        for key, parameter in list(merged.named_parameters()):
            yield f"{name}.{key}", parameter.detach()
            put(merged, key, hollow(parameter) if read is not None else parameter.detach().to(dtypes[key]))


def hollow(parameter: torch.Tensor) -> nn.Parameter:
    """A parameter of the same shape on the CPU, float32, that takes no memory."""
    return nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)


def put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter."""
    path, _, last = name.rpartition(".")
    kept = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
    module.get_submodule(path)._parameters[last] = kept


def has_adapters(model: Any) -> bool:
    """Whether a loaded model has adapters: its own, or those of the ``PeftModel`` that it is."""
    return bool(getattr(model, "_hf_peft_config_loaded", False)) or hasattr(model, "get_base_model")


def merged_copy(model: Any) -> PreTrainedModel:
    """A copy of a loaded model, with its adapters merged; the model itself stays as it is.

    Args:
        model: a model of transformers with adapters, or a ``PeftModel``.

    Raises:
        RequestError: its adapters cannot be merged, are switched off, or change a weight that the model uses in two
            places.
        FxpruneError: PEFT cannot merge a layer.
    """
    found = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, parameter in found.named_parameters():
        if parameter.is_meta:
            raise RequestError(f"{type(found).__name__} has no value in memory for {name}", MERGE_IT)
    twin: PreTrainedModel = copy.deepcopy(found)
    if not _outermost(twin):
        raise RequestError(f"{_kinds(model)} is no adapter of layers that could be merged", MERGE_IT)
    shared = _shared(twin)
    for name, _ in merged_values(twin):
        refuse_shared(name, shared)
    twin._hf_peft_config_loaded = False
    vars(twin).pop("peft_config", None)
    return twin


def _kinds(model: Any) -> str:
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    return ", ".join(sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in configs.values()}))


def _outermost(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer of PEFT, those left out that lie in another one."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if not inside:
                found[name] = module
    return found


def _base_of(layer: Any) -> nn.Module:
    """The layer of the model that PEFT has wrapped."""
    holder = getattr(layer, "token_adapter", layer)
    base: nn.Module = holder.get_base_layer() if hasattr(holder, "get_base_layer") else layer.original_module
    return base


def shared_names(parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """The names of parameters that are in a model more than once."""
    count = Counter(map(id, parameters.values()))
    return {name for name, parameter in parameters.items() if count[id(parameter)] > 1}


def refuse_shared(name: str, shared: Collection[str]) -> None:
    """Refuse to merge into a weight that the model uses in two places: the adapter changes one of them.

    Raises:
        RequestError: naming it.
    """
    if name in shared:
        raise RequestError(f"the adapter changes {name}, which other layers of the model share", MERGE_IT)


def _shared(model: nn.Module) -> set[str]:
    """The names, without adapters, of parameters that are in a model with adapters more than once."""
    places = _outermost(model)
    inside = tuple(f"{place}." for place in places)
    plain = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(inside)
    }
    for name, layer in places.items():
        plain |= {f"{name}.{key}": parameter for key, parameter in _base_of(layer).named_parameters()}
    return shared_names(plain)


def _fill(plain: nn.Module, read: ReadParameter) -> None:
    for key, parameter in list(plain.named_parameters()):
        value = read(parameter)
        if value is not None:
            put(plain, key, value)


def _check_active(name: str, layer: Any) -> None:
    if getattr(layer, "disable_adapters", False) or getattr(layer, "_disable_adapters", False):
        raise RequestError(f"the adapter of {name} is switched off", "switch it on, or load the model without it")


def _merged(name: str, layer: Any) -> nn.Module:
    """The layer that PEFT has wrapped, in float32, with the adapter in its weights."""
    layer.float()
    probe = _probe(_base_of(layer))
    before = None if probe is None else layer(probe)
    try:
        if hasattr(layer, "unload_and_optionally_merge_module"):
            merged: nn.Module = layer.unload_and_optionally_merge_module(
                merge=True, safe_merge=True, adapter_names=None
            )
        else:
            layer.merge(safe_merge=True)
            merged = layer.get_base_layer()
    except Exception as error:  # whatever PEFT raises has no common class
        raise FxpruneError(f"PEFT cannot merge the adapter of {name}: {first_line(error)}", MERGE_IT) from error
    if before is not None:
        _check_same(name, before, merged(probe))
    return merged


def _probe(base: nn.Module) -> torch.Tensor | None:
    """Inputs for a layer, the same at every call; None where nothing says what it takes."""
    from transformers.pytorch_utils import Conv1D

    draw = torch.Generator().manual_seed(0)
    if isinstance(base, nn.Embedding):
        return torch.randint(base.num_embeddings, (_PROBE_ROWS,), generator=draw)
    if isinstance(base, nn.Linear | Conv1D):
        width = base.weight.shape[0 if isinstance(base, Conv1D) else 1]
        return torch.randn(_PROBE_ROWS, width, generator=draw)
    return None


def _check_same(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    difference = (before - after).abs().max().item()
    allowed = roundings(MERGED_ROUNDINGS, before.dtype) * max(1.0, before.abs().max().item())
    if not difference <= allowed:
        raise FxpruneError(
            f"the adapter of {name} cannot be merged: the merged layer differs by {difference:.3g} in its outputs "
            f"(allowed {allowed:.3g})",
            "check that its values are finite; an adapter whose effect depends on the text cannot be merged",
        )
