"""Shrinking a module in place: its tensors become slices of themselves, its integers follow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..ir.errors import FxpruneError
from ..ir.plan import Plan
from ..ir.repairs import Repairs
from ..runtime.tensors import slice_tensors, tensors_by_name
from .attributes import Extents, find_repairs, put
from .rehearsal import Rehearsal


def shrink_module(
    model: nn.Module,
    plan: Plan,
    extents: Extents,
    example: Mapping[str, Any],
    *,
    outputs: Sequence[str] = (),
    accept: Callable[[], bool] | None = None,
) -> Repairs:
    """Replace every tensor that ``plan`` slices and repair the integer attributes that the forward reads.

    Attributes are found by value, never by name: an attribute that equals an extent which the rewrite changed gets the
    new extent. Where the same number also stands for an extent that stays, the choice is tried on a weightless copy of
    the model: a choice stands when the same modules run and give outputs of the same shapes. Nothing is changed unless
    one does. Configuration objects are never written to; a module whose forward reads a changed width from one gets
    a view of its own. Constants such as the attention scale stay what the original head size made them.

    Args:
        model: on any device, the meta device included; shrunk in place.
        plan: its ``slices`` name tensors by their first name in ``named_parameters()`` or ``named_buffers()``.
        extents: module path ("" for the root) -> (old, new) of every extent and integer shape argument in the operators
            that run inside the module and its children; unchanged pairs included.
        example: keyword arguments of the forward, tensors of a batch of at least one and several positions.
        outputs: keys of what counts among the things that the model returns, whose shapes must stay; all when empty.
        accept: asked after each repair that runs, with ``model`` shrunk and repaired; the first that it accepts stays.
            It tells repairs apart that only numbers can, by logits. Without it the first stays.

    Returns:
        What was repaired, for a backend to replay.

    Raises:
        FxpruneError: when the plan does not fit the model, when no choice of attributes runs (the message names the
            module and its error; the model is untouched), or when ``accept`` refused every one that did (the tensors
            are sliced by then).
    """
    shapes = smaller_shapes(model, plan)
    rehearsal = Rehearsal(model, example, outputs)
    candidates = find_repairs(model, rehearsal, shapes, extents)
    first = next(candidates)
    slice_tensors(model, plan)
    if accept is None:
        put(model, first)
        return first
    tried = 0
    for repairs in itertools.chain([first], candidates):
        take_back = put(model, repairs)
        if accept():
            return repairs
        take_back()
        tried += 1
    raise FxpruneError(
        f"the shrunken model runs but computes something else than its graph ({tried} ways to repair it were tried)",
        "please report the architecture; freezing the group that was cut avoids it",
    )


def smaller_shapes(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape that every sliced tensor will have.

    Raises:
        FxpruneError: for a tensor, a dimension or an index that the model does not have.
    """
    hint = "the plan was made for another model"
    tensors = tensors_by_name(model)
    shapes: dict[str, list[int]] = {}
    for (name, dim), kept in sorted(plan.slices.items()):
        if name not in tensors:
            raise FxpruneError(f"the plan slices '{name}', which the model does not have", hint)
        shape = tuple(tensors[name].shape)
        if not 0 <= dim < len(shape):
            raise FxpruneError(f"the plan slices dimension {dim} of '{name}', whose shape is {shape}", hint)
        if len(kept) == 0 or int(kept[0]) < 0 or int(kept[-1]) >= shape[dim] or (np.diff(kept) <= 0).any():
            raise FxpruneError(
                f"the plan's indices for dimension {dim} of '{name}' do not ascend within 0 to {shape[dim] - 1}",
                hint,
            )
        shapes.setdefault(name, list(shape))[dim] = len(kept)
    return {name: tuple(shape) for name, shape in shapes.items()}
