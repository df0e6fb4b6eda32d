"""The code that a model brings: what its configuration names, and the files that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError

CAUSAL_LM = "AutoModelForCausalLM"

CODE = ".py"


def own_auto_class(auto_map: Mapping[str, Any], architectures: Iterable[str] | None) -> str:
    """The Auto class that builds a model which brings its code, with all of its weights; "" if its code has no model.

    Args:
        auto_map: Auto class -> ``module.Class``, as in a configuration.
        architectures: the class that the weights are of; some models name another there than in ``auto_map``.
    """
    models = {auto: str(reference) for auto, reference in auto_map.items() if auto.startswith("AutoModel")}
    named = next(iter(architectures or ()), "")
    fitting = [auto for auto, reference in models.items() if class_in(reference) == named] or list(models)
    return CAUSAL_LM if CAUSAL_LM in fitting else next(iter(fitting), "")


def class_in(reference: str) -> str:
    """The class in ``module.Class``."""
    return reference.rpartition(".")[2]


def module_in(reference: str) -> str:
    """The module in ``module.Class``."""
    return reference.partition(".")[0]


def own_class(reference: str, directory: Path) -> Any:
    """The class of a model that brings its own code, as the Auto classes of transformers get it. The code runs: ask
    for consent first.

    The Auto classes remember the class of a model for the class of its configuration. In another directory of the same
    name, with the same code of the configuration, they would take it for any other model.

    Raises:
        RequestError: it is no class of a model.
    """
    from transformers import PreTrainedModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

    found = get_class_from_dynamic_module(reference, directory)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise RequestError(
            f"{directory / 'config.json'} names {reference}, which is no model", "name a class of models"
        )
    return add_generation_mixin_to_remote_model(found)


def code_files(references: Iterable[str], directory: Path) -> dict[str, Path] | None:
    """Name -> file of the modules that are named, and of what they import from beside them; None if one is missing."""
    from transformers.dynamic_module_utils import get_relative_imports

    wanted, found = [f"{module_in(reference)}{CODE}" for reference in references], {}
    while wanted:
        name = wanted.pop()
        file = directory / name
        if Path(name).name != name or not file.is_file():
            return None
        if name not in found:
            found[name] = file
            wanted += [f"{module.partition('.')[0]}{CODE}" for module in get_relative_imports(file)]
    return dict(sorted(found.items()))
