"""Whether a plain configuration will describe a model after a plan, asked before anything is cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from transformers import PreTrainedModel

from ...ir.plan import Plan
from ...runtime.absence import absences
from ...runtime.model.held_values import held_values
from ...runtime.quiet import quiet
from ...runtime.tensors import first_names
from .config_search import ConfigMatch, find_config, model_shapes
from .free_form import plain_config
from .model_class import base_class
from .synthetic_weights import meta_model

BUILDS = 48
"""Largest number of models that are built for one plan. Many plans may be asked for, and a configuration that describes
one is found early."""


def why_not_plain(
    model: PreTrainedModel,
    plan: Plan,
    quantities: Iterable[tuple[int, int]],
    same: Callable[[PreTrainedModel], bool],
) -> str:
    """Why no plain configuration describes a model after a plan; "" when one does.

    Args:
        model: as it is before; its weights are not read.
        plan: what will be cut.
        quantities: as in :func:`.config_search.find_config`.
        same: whether a smaller model, on the meta device, computes what the rewritten graph does.
    """
    if absent := next(iter(absences(model)), ""):
        return f"{absent} is absent"
    if narrow := next((path for path in held_values(model) if (f"{path}.weight", 0) in plan.slices), ""):
        return f"{narrow} makes values that are narrower than the heads"

    def accept(match: ConfigMatch) -> bool:
        with quiet():
            candidate = meta_model(match.model_class, copy.deepcopy(match.config))
        try:
            return same(candidate)
        except Exception:  # a configuration whose model cannot run is not the right one
            return False

    source, base = plain_config(model.config), base_class(model)
    counts = {len(units) for units in plan.keep.values()}
    match, why = find_config(source, base, _shapes(model, plan), quantities, accept=accept, limit=BUILDS, about=counts)
    return "" if match is not None else why


def _shapes(model: PreTrainedModel, plan: Plan) -> dict[str, tuple[int, ...]]:
    first, cut = first_names(model), plan.by_tensor()
    found = {}
    for name, shape in model_shapes(model).items():
        kept = cut.get(first.get(name, name), {})
        found[name] = tuple(len(kept[dim]) if dim in kept else extent for dim, extent in enumerate(shape))
    return found
