"""The free form: widths that no configuration describes, set by a small modelling file beside the weights.

The file defines a subclass of the original class, of transformers or of the code that the model brings, with the same
name. It builds the model from the configuration of the source, then sets the shapes and attributes in the ``fxprune``
entry of config.json, and removes the modules that this entry lists. It has no code for any architecture, and needs only
transformers and the code of the model.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...ir.errors import FxpruneError, RequestError
from ...ir.plan import Plan
from ...ir.repairs import ConfigView, Repairs, repair, repairs_integers
from ...runtime.absence import Absence, absences
from ...runtime.model.own_code import module_in
from ...runtime.tensors import tensors_by_every_name
from .config_search import built_shapes, model_shapes
from .model_class import MODULE, base_class, own_reference

CONFIG_ENTRY = "fxprune"

HEADER = '''\
# Copyright the fxprune authors.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
"""{name} with layers of their own widths, as fxprune {version} cut them.

The original class builds itself from the configuration; then the tensors get the shapes, and the modules the
attributes, that the "fxprune" entry of config.json lists.{absent} Load it with

    transformers.{auto}.from_pretrained(PATH, trust_remote_code=True)
"""

from typing import Any

import torch
{imported}

'''

FOOTER = '''

class {name}({original}):
    """The original architecture; only widths differ."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        replay(self, config.fxprune)
{absent}
    # transformers looks at the module that defines a class for both; here the original's answers hold.

    @classmethod
    def is_custom_code(cls) -> bool:
        return {original}.is_custom_code()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return {original}._can_set_experts_implementation()
'''

ORIGINAL = ("is_custom_code", "_can_set_experts_implementation")
"""Methods for which the modelling file calls the original class."""

ORIGINAL_NAME = "Original"
"""In the modelling file, the class of a model that brings its own code."""

ABSENT = ' The modules under "absent" go.'
TAKE_OUT = "        take_out(self, config.fxprune)\n"


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


def check_entry(model: torch.nn.Module, entry: dict[str, Any]) -> None:
    """Compare the ``fxprune`` entry of a configuration, which anybody may have written, with a freshly built model.

    Raises:
        RequestError: it is anything but smaller shapes, new integers for old ones, and modules of the model that go.
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


def free_config(model: PreTrainedModel, plan: Plan, repairs: Repairs, auto_map: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of the free form: that of the source, the changed shapes, and the name of the modelling file.

    Args:
        model: the pruned model.
        plan: what was removed.
        repairs: attributes that changed.
        auto_map: Auto class -> ``module.Class``.

    Raises:
        FxpruneError: the plan has changed a tensor that is not stored in checkpoints.
    """
    source = plain_config(model.config)
    base = base_class(model)
    absent = absences(model)
    gone = tuple(f"{path}." for path in absent)
    built = built_shapes(base, source)
    before, after = {name: built[name] for name in built if not name.startswith(gone)}, model_shapes(model)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise FxpruneError(
            f"the model and {base.__name__} do not have the same tensors: '{odd}'", "merge adapters before saving"
        )
    buffers = {name for name, _ in model.named_buffers()}
    for name in sorted({name for name, _ in plan.slices} & buffers - after.keys()):
        raise FxpruneError(
            f"units were removed from '{name}', which checkpoints do not store", "do not prune its group"
        )
    earlier = Repairs.from_json(getattr(model.config, CONFIG_ENTRY, {}).get("attributes", {}))
    entry = {
        "shapes": {name: list(after[name]) for name in sorted(after) if after[name] != before[name]},
        "attributes": earlier.then(repairs).to_json(),
    }
    if absent:
        entry["absent"] = absent
    if reference := own_reference(base):
        entry["own_class"] = reference
    return type(source).from_dict({**source.to_dict(), "auto_map": dict(auto_map), CONFIG_ENTRY: entry})


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration without the entries that the free form added."""
    data = {key: value for key, value in config.to_dict().items() if key != CONFIG_ENTRY}
    return type(config).from_dict(without_entries(data, "auto_map"))  # parts of a model may name code too


def without_entries(value: Any, name: str) -> Any:
    """Data without the entries of a name, at any depth."""
    if isinstance(value, dict):
        return {key: without_entries(inner, name) for key, inner in value.items() if key != name}
    return [without_entries(item, name) for item in value] if isinstance(value, list) else value


def write_code(
    folder: Path, base: type[PreTrainedModel], auto_class: str, version: str, *, absent: bool = False
) -> dict[str, str]:
    """Write the modelling file for a class; ``absent`` tells that modules were removed.

    Returns:
        The name of the file -> the sha256 of what it holds.
    """
    needed = (ConfigView, repair, replay, *((Absence, Absent, take_out) if absent else ()))
    parts = "\n\n".join(inspect.getsource(part) for part in needed)
    name, reference = base.__name__, own_reference(base)
    imported = f"from .{module_in(reference)} import {name} as {ORIGINAL_NAME}" if reference else "import transformers"
    header = HEADER.format(
        name=name, version=version, auto=auto_class, absent=ABSENT if absent else "", imported=imported
    )
    original = ORIGINAL_NAME if reference else f"transformers.{name}"
    footer = FOOTER.format(name=name, original=original, absent=TAKE_OUT if absent else "")
    text = f"{header}\n{parts}{footer}".encode()
    (folder / f"{MODULE}.py").write_bytes(text)
    return {f"{MODULE}.py": hashlib.sha256(text).hexdigest()}


def free_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class that the modelling file defines, made from the code of fxprune without running the file."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        try:
            check_entry(self, getattr(config, CONFIG_ENTRY))
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError("the 'fxprune' entry of config.json is damaged", _ENTRY) from error
        replay(self, getattr(config, CONFIG_ENTRY))
        take_out(self, getattr(config, CONFIG_ENTRY))

    answers = {name: getattr(base, name) for name in ORIGINAL}  # methods bound to the original class
    return type(base.__name__, (base,), {"__init__": __init__, "__module__": __name__, **answers})
