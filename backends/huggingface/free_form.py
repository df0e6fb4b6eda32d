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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import MODEL_MAPPING as AUTO_MODEL_CLASSES
from transformers import PreTrainedConfig, PreTrainedModel

from ...ir.errors import FxpruneError
from ...ir.plan import Plan
from ...ir.repairs import ConfigView, Repairs, repair
from ...runtime.absence import Absence, absences
from ...runtime.model.free_class import CONFIG_ENTRY, Absent, replay, take_out, within
from ...runtime.model.held_values import hold_values, narrow_values, with_zeros, without_zeros
from ...runtime.model.own_code import module_in
from .config_search import built_shapes, model_shapes
from .model_class import MODULE, base_class, own_reference

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
{values}        replay(self, {entry})
{absent}
    # transformers looks at the module that defines a class for both; here the original's answers hold.

    @classmethod
    def is_custom_code(cls) -> bool:
        return {original}.is_custom_code()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return {original}._can_set_experts_implementation()
'''

ORIGINAL_NAME = "Original"
"""In the modelling file, the class of a model that brings its own code."""

ABSENT = ' The modules under "absent" go.'
TAKE_OUT = "        take_out(self, {entry})\n"
HOLD = '        hold_values(self, {entry}.get("values", {{}}))\n'


@dataclass(frozen=True)
class Headless:
    """The model within a model with a head: what ``AutoModel`` loads, and runtimes that bring heads of their own.

    Attributes:
        model_class: its class, of transformers.
        name: of the module that it is.
    """

    model_class: type[PreTrainedModel]
    name: str


def headless(model: PreTrainedModel) -> Headless | None:
    """What the modelling file defines for ``AutoModel``; None where transformers has no such class, or this class
    builds other tensors than the model holds, such as a pooler that only the head without it lacks."""
    base, name = base_class(model), str(getattr(model, "base_model_prefix", ""))
    inner = getattr(model, name, None) if name else None
    if own_reference(base) or not isinstance(inner, PreTrainedModel):
        return None
    known = base_class(inner)
    if AUTO_MODEL_CLASSES.get(type(model.config), None) is not known:
        return None
    gone = tuple(f"{path}." for path in absences(inner))
    built = {each for each in built_shapes(known, plain_config(model.config)) if not each.startswith(gone)}
    return Headless(known, name) if built == model_shapes(inner).keys() else None


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
    repaired = earlier.then(repairs).to_json()
    entry: dict[str, Any] = {
        "shapes": {name: list(after[name]) for name in sorted(after) if after[name] != before[name]},
        "attributes": {path: made for path, made in repaired.items() if not f"{path}.".startswith(gone)},
    }
    if values := narrow_values(model):
        entry["values"] = values
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
    folder: Path, model: PreTrainedModel, auto_class: str, version: str, inner: Headless | None
) -> dict[str, str]:
    """Write the modelling file for a model, and for the model within it where ``AutoModel`` shall load that.

    Returns:
        The name of the file -> the sha256 of what it holds.
    """
    base, absent, values = base_class(model), bool(absences(model)), bool(narrow_values(model))
    needed = (
        ConfigView, repair, replay, *((Absence, Absent, take_out) if absent else ()), *((within,) if inner else ()),
        *((with_zeros, without_zeros, hold_values) if values else ()),
    )  # fmt: skip
    parts = "\n\n".join(inspect.getsource(part) for part in needed)
    name, reference = base.__name__, own_reference(base)
    imported = f"from .{module_in(reference)} import {name} as {ORIGINAL_NAME}" if reference else "import transformers"
    header = HEADER.format(
        name=name, version=version, auto=auto_class, absent=ABSENT if absent else "", imported=imported
    )
    original = ORIGINAL_NAME if reference else f"transformers.{name}"
    classes = [(name, original, "config.fxprune")]
    if inner is not None:
        known = inner.model_class.__name__
        classes.append((known, f"transformers.{known}", f'within(config.fxprune, "{inner.name}")'))
    footers = []
    for name, original, entry in classes:
        held = HOLD.format(entry=entry) if values else ""
        gone = TAKE_OUT.format(entry=entry) if absent else ""
        footers.append(FOOTER.format(name=name, original=original, entry=entry, absent=gone, values=held))
    text = "".join((header, "\n", parts, *footers)).encode()
    (folder / f"{MODULE}.py").write_bytes(text)
    return {f"{MODULE}.py": hashlib.sha256(text).hexdigest()}
