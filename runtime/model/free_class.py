"""The class of a model in the free form: a class that builds itself from a configuration, with the widths that the
``fxprune`` entry of config.json lists.

The modelling file of an artifact holds the same functions. Here they are made from the code of fxprune, so that no file
of the artifact runs; what the entry says, which anybody may have written, is checked first.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ...ir.errors import RequestError
from ...ir.repairs import repair, repairs_integers
from ..absence import Absence
from ..tensors import tensors_by_every_name
from .held_values import MAKES, READS, hold_values

CONFIG_ENTRY = "fxprune"
"""The entry of config.json that lists shapes, attributes and what is absent."""

ORIGINAL = ("is_custom_code", "_can_set_experts_implementation")
"""Methods for which the modelling file calls the original class."""


class Absent(Absence, torch.nn.Module):
    """A module that was taken out."""


def replay(model: torch.nn.Module, entry: dict[str, Any]) -> None:
    """Give a freshly built model the shapes and attributes of ``entry``; tied tensors stay tied."""
    smaller = {}
    for name, shape in entry["shapes"].items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        if id(old) not in smaller:
            new = old.detach()[tuple(slice(size) for size in shape)].clone()
            is_parameter = isinstance(old, torch.nn.Parameter)
            smaller[id(old)] = (old, torch.nn.Parameter(new, old.requires_grad) if is_parameter else new)
        setattr(module, leaf, smaller[id(old)][1])
    for path, attributes in entry["attributes"].items():
        for attribute, (_, value) in attributes.items():
            repair(model.get_submodule(path), attribute, value)


def take_out(model: torch.nn.Module, entry: dict[str, Any]) -> None:
    """Put what adds nothing in place of the modules that ``entry`` lists as absent."""
    for path, absence in entry.get("absent", {}).items():
        model.set_submodule(path, Absent(absence))


def within(entry: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What ``entry`` says of one module of the model, by names within it."""
    parts = ("shapes", "attributes", "absent", "values")
    named = {part: {f"{name}.": value for name, value in entry.get(part, {}).items()} for part in parts}
    start = f"{prefix}."
    return {
        part: {name[len(start) : -1]: value for name, value in values.items() if name.startswith(start)}
        for part, values in named.items()
    }


def check_entry(model: torch.nn.Module, entry: dict[str, Any]) -> None:
    """Compare the ``fxprune`` entry of a configuration, which anybody may have written, with a freshly built model.

    Raises:
        RequestError: it is anything but smaller shapes, new integers for old ones, and modules of the model that go.
            What it says of values is checked by :func:`check_values`.
    """
    tensors, modules = tensors_by_every_name(model), dict(model.named_modules())
    for name, shape in entry["shapes"].items():
        held = tuple(tensors[name].shape) if name in tensors else ()
        fits = isinstance(shape, list) and len(shape) == len(held) and all(type(size) is int for size in shape)
        if not (fits and all(0 <= size <= was for size, was in zip(shape, held, strict=True))):
            raise RequestError(f"config.json makes {name!r} {shape}, and it is {list(held)}", _ENTRY)
    for path, attributes in entry["attributes"].items():
        for attribute, change in attributes.items():
            known = path in modules and repairs_integers(modules[path], attribute, change)
            if not known or not _narrows(model, modules[path], attribute, change[1]):
                raise RequestError(f"config.json changes {attribute!r} of {path!r} to {change}", _ENTRY)
    for path, absence in entry.get("absent", {}).items():
        plain = isinstance(absence, dict) and absence.keys() == {"outputs", "cache"}
        counts = plain and type(absence["outputs"]) is int and 0 <= absence["outputs"] <= MOST_OUTPUTS
        if not path or path not in modules or not counts:
            raise RequestError(f"config.json says that {path!r} is absent: {absence}", _ENTRY)
        cache = absence["cache"]
        if cache is not None and (type(cache) is not int or not 0 <= cache < _layers(model, modules)):
            raise RequestError(f"config.json says that {path!r} fills layer {absence['cache']!r} of the cache", _ENTRY)


def check_values(model: torch.nn.Module, entry: dict[str, Any]) -> None:
    """Compare what an entry says of the values of heads, which anybody may have written, with a freshly built model.

    Raises:
        RequestError: it names anything but linear layers whose one side is whole heads.
    """
    modules = dict(model.named_modules())
    for path, held in entry.get("values", {}).items():
        module, size = modules.get(path), 0
        plain = isinstance(held, list) and len(held) == 2 and held[0] in (MAKES, READS)
        if isinstance(module, torch.nn.Linear) and plain and type(held[1]) is int and held[1] > 0:
            size = module.out_features if held[0] == MAKES else module.in_features
        if not size or size % held[1]:
            raise RequestError(f"config.json says that {path!r} holds the values of heads: {held}", _ENTRY)


def _narrows(model: torch.nn.Module, module: torch.nn.Module, attribute: str, new: Any) -> bool:
    """Whether an integer, or each of several, gets a value that pruning gives: positive, and none that is larger.

    Query heads per head of keys are more where more of the latter went, but no more than there are query heads."""
    held: Any = module
    for name in attribute.split("."):
        held = getattr(held, name)
    before, after = ([value] if isinstance(value, int) else list(value) for value in (held, new))
    if len(before) != len(after) or any(isinstance(value, bool) for value in (*before, *after)):
        return False
    heads = getattr(_text_config(model), "num_attention_heads", 0) if attribute.endswith("groups") else 0
    most = heads if isinstance(heads, int) else 0
    return all(size == was or 0 < size <= max(was, most) for size, was in zip(after, before, strict=True))


def _layers(model: torch.nn.Module, modules: dict[str, torch.nn.Module]) -> int:
    """The layers that a cache may have."""
    layers = getattr(_text_config(model), "num_hidden_layers", None)
    return layers if isinstance(layers, int) else len(modules)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


MOST_OUTPUTS = 16
"""Values that a part of a layer returns: models of today return up to four."""

_ENTRY = "this is not what fxprune wrote: get the model again, or write it again"


def known_base(config: dict[str, Any]) -> type[PreTrainedModel] | None:
    """The class of transformers that a model in the free form is made from; None where it is made from code that the
    model brings, or is in no free form.

    Args:
        config: the contents of config.json.
    """
    entry, named = config.get(CONFIG_ENTRY), config.get("architectures")
    if not isinstance(entry, dict) or entry.get("own_class") or not isinstance(named, list):
        return None
    found = getattr(transformers, str(next(iter(named), "")), None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def free_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class that the modelling file defines, made from the code of fxprune without running the file."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        try:
            check_values(self, getattr(config, CONFIG_ENTRY))
            hold_values(self, getattr(config, CONFIG_ENTRY).get("values", {}))
            check_entry(self, getattr(config, CONFIG_ENTRY))
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError("the 'fxprune' entry of config.json is damaged", _ENTRY) from error
        replay(self, getattr(config, CONFIG_ENTRY))
        take_out(self, getattr(config, CONFIG_ENTRY))

    answers = {name: getattr(base, name) for name in ORIGINAL}  # methods bound to the original class
    return type(base.__name__, (base,), {"__init__": __init__, "__module__": __name__, **answers})
