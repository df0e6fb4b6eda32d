"""The class that a model is written for: of transformers, or of the code that the model brings; and which of this code
goes along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ...ir.errors import RequestError
from ...runtime.model.own_code import CODE, class_in, code_files, module_in, own_auto_class
from ...runtime.model_files import copy_model_file
from ..digests import sha256

MODULE = "modeling_fxprune"
"""The modelling file of the free form."""

USUAL = (
    "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText",
    "AutoModelForSequenceClassification", "AutoModelForMaskedLM", "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering", "AutoModelForImageClassification", "AutoModel",
)  # fmt: skip
AUTO_CLASSES = (
    *USUAL,
    *(name for name in sorted(dir(transformers)) if name.startswith("AutoModelFor") and name not in USUAL),
)
"""The Auto classes in the order in which they are searched: several may load the same class."""


def base_class(model: nn.Module) -> type[PreTrainedModel]:
    """The class of transformers or of the model's own code that a model has, or that its class derives from.

    Raises:
        RequestError: there is none.
    """
    for candidate in type(model).__mro__:
        if not issubclass(candidate, PreTrainedModel):
            continue
        if candidate.__module__.startswith("transformers.models.") or own_reference(candidate):
            return candidate
    raise RequestError(
        f"{type(model).__name__} is neither a class of transformers nor of code beside its weights",
        "save it with its code: register_for_auto_class, then save_pretrained",
    )


def own_reference(model_class: type) -> str:
    """``module.Class`` of a class that came beside the weights of a model; "" for any other."""
    package, _, module = model_class.__module__.rpartition(".")
    own = package.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.") and module != MODULE
    return f"{module}.{model_class.__name__}" if own else ""


def auto_class_of(model_class: type[PreTrainedModel], config: PreTrainedConfig | None = None) -> str:
    """Name of the Auto class that loads a class. If there is none, as for the text part of a multimodal model, the name
    of the class itself.

    Args:
        model_class: of transformers, or of a model's own code.
        config: that of the model, for its own code.
    """
    if own_reference(model_class):
        return own_auto_class(getattr(config, "auto_map", {}), getattr(config, "architectures", None))
    for name in AUTO_CLASSES:
        mapping = getattr(transformers, name)._model_mapping
        if model_class.config_class in mapping:
            found = mapping[model_class.config_class]
            if model_class in (found if isinstance(found, tuple) else (found,)):
                return name
    if model_class.__module__.startswith("transformers.models."):
        return model_class.__name__
    raise RequestError(f"no Auto class of transformers loads {model_class.__name__}", "prune a model with a task head")


@dataclass(frozen=True)
class OwnCode:
    """The code of a model that goes along with what is made of it.

    Attributes:
        auto_map: for the configuration of the result.
        files: name -> file that the result needs.
        left_out: what the source names and does not have, in words.
    """

    auto_map: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def own_code(config: PreTrainedConfig, base: type[PreTrainedModel], directory: Path, *, free: bool) -> OwnCode:
    """What goes along of the code of a model that brings its own; nothing for a class of transformers.

    What names the class of the model names the modelling file in the free form. Other heads load their own tensors
    from the weights; of them the free form has none, since their widths are those of the configuration.

    Args:
        config: that of the source.
        base: the class of the model.
        directory: of the source.
        free: whether the result has a modelling file.

    Raises:
        RequestError: code of the model or of its configuration is missing, or bears the name of fxprune's file.
    """
    if not (reference := own_reference(base)):
        return OwnCode()
    ours, own = f"{MODULE}.{base.__name__}", auto_class_of(base, config)
    auto_map: dict[str, Any] = {}
    left_out = []
    for auto, value in getattr(config, "auto_map", {}).items():
        if auto == own or (auto.startswith("AutoModel") and class_in(value) == base.__name__):
            auto_map[auto] = ours if free else reference
        elif auto.startswith("AutoModel") and (free or module_in(value) == MODULE):
            continue
        elif auto == "AutoConfig" or code_files(_references(value), directory) is not None:
            auto_map[auto] = value
        else:
            left_out.append(f"the code that config.json names for {auto}: {', '.join(_references(value))}")
    named = {reference, *(each for value in auto_map.values() for each in _references(value))} - {ours}
    return OwnCode(auto_map, _present(sorted(named), directory), tuple(left_out))


def _present(references: list[str], directory: Path) -> dict[str, Path]:
    """The files of code that has to be there."""
    files = code_files(references, directory)
    if files is None:
        modules = ", ".join(sorted({f"{module_in(reference)}{CODE}" for reference in references}))
        raise RequestError(
            f"{directory} lacks code that its config.json names ({modules}), or that this imports from beside it",
            "copy all of its code there",
        )
    if f"{MODULE}{CODE}" in files:
        raise RequestError(
            f"{directory} has code in {MODULE}{CODE}, which is the name of fxprune's own file", "rename that file"
        )
    return files


def _references(value: Any) -> list[str]:
    """Each ``module.Class`` in an entry of an ``auto_map``; a tokenizer has a list of two, either of which may be
    missing."""
    return [reference for reference in (value if isinstance(value, list | tuple) else [value]) if reference]


def copy_code(files: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Copy code into a directory.

    Returns:
        File name -> the sha256 of the copy.
    """
    for path in files.values():
        copy_model_file(path, folder)
    return {name: sha256(folder / name) for name in files}
