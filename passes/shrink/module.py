"""Shrinks a module in place: slices its tensors, and repairs its integer attributes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...ir.errors import FxpruneError, class_and_first_line
from ...ir.graph import Graph
from ...ir.plan import Plan
from ...ir.repairs import Number, Repairs
from ...runtime.place.memory import device_memory, host_memory, is_out_of_memory
from ...runtime.tensors import Places, slice_tensors, tensors_by_name
from ..data import Observed
from .attributes import Known, ModuleExtents, find_repairs, likely_repairs, put
from .dry_run import DryRun
from .uses import new_values


def known_by(observed: Observed, before: Graph, after: Graph) -> Known:
    """What a run of a module and a rewrite of its graph tell about its attributes."""
    return Known(observed.reads, *new_values(observed.uses, before, after))


def shrink_module(
    model: nn.Module,
    plan: Plan,
    extents: ModuleExtents,
    example: Mapping[str, Any],
    *,
    outputs: Sequence[str] = (),
    accept: Callable[[], bool] | None = None,
    known: Known | None = None,
    resized: Mapping[int, int] | None = None,
    given: Mapping[tuple[str, str], Number] | None = None,
) -> Repairs:
    """Replace every tensor that ``plan`` slices and repair the integer attributes that the forward reads.

    Attributes are found by value, never by name: one that equals a changed extent gets the new extent. If the same
    number also equals an extent that did not change, a dry run of the repair decides, on a copy with synthetic weights:
    the same modules must run and return the same shapes. The model is changed only if one choice passes. Configuration
    objects never are; a module whose forward reads a changed width from one gets its own view of it. Constants such as
    the attention scale keep the value for the dense head size.

    Args:
        model: on any device, also the meta device; shrunk in place.
        plan: ``slices`` names tensors by their first name in ``named_parameters()`` or ``named_buffers()``.
        extents: module path ("" for the root) -> (old, new) of every extent and integer shape argument in the operators
            of the module and its children; also unchanged pairs.
        example: keyword arguments of the forward, with at least one sample and several positions.
        outputs: keys of the outputs whose shapes count; all when empty.
        accept: called after each repair that runs, with ``model`` shrunk and repaired: it compares logits. The first
            accepted repair is used; without it the first.
        known: what a run of ``model`` showed: with ``accept``, the likeliest repair is tried before any dry run.
        resized: last extents of outputs that change on purpose, old -> new.
        given: (path, attribute) -> its new value, where the caller knows it.

    Returns:
        The repairs, which a backend can apply again.

    Raises:
        FxpruneError: when the plan does not fit the model; when the model runs with no choice of attributes (with the
            module and its error; the model is not changed); when ``accept`` refused every choice (tensors are as before
            where there was memory for them beside their slices, otherwise sliced).
    """
    shapes = smaller_shapes(model, plan)
    known = None if known is None else replace(known, values={**known.values, **(given or {})})
    likely = None if accept is None or known is None else likely_repairs(model, known, shapes, extents)
    if likely is not None and accept is not None and _accepted_at_once(model, plan, likely, accept):
        return likely
    found = find_repairs(model, DryRun(model, example, outputs), shapes, extents, known, resized=resized, given=given)
    if accept is None:
        return _sliced(model, plan, next(found))
    return _sliced_and_accepted(model, plan, _besides(likely, found), accept)


def _sliced(model: nn.Module, plan: Plan, repairs: Repairs) -> Repairs:
    """Slice the tensors and apply repairs."""
    slice_tensors(model, plan)
    put(model, repairs)
    return repairs


def _besides(likely: Repairs | None, found: Iterable[Repairs]) -> Iterable[Repairs]:
    """The repairs that were found, without the likely one, which was refused; where only that one was found, it is
    tried again, to say why. The first is found at once, from the module before it is sliced."""
    others = (repairs for repairs in found if repairs != likely)
    head = list(itertools.islice(others, 1))
    if not head and likely is not None:
        head = [likely]
    return itertools.chain(head, others)


def _sliced_and_accepted(
    model: nn.Module, plan: Plan, candidates: Iterable[Repairs], accept: Callable[[], bool]
) -> Repairs:
    """Slice the tensors and apply the first repairs with which ``accept`` agrees; put the tensors back where it agrees
    with none, if they were kept."""
    before = _kept_beside(model, plan)
    slice_tensors(model, plan)
    try:
        return _put_accepted(model, candidates, accept)
    except FxpruneError:
        for name, tensor in before.items():
            Places(model).replace(name, tensor)
        raise


def _kept_beside(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors that a plan slices, by name, to put them back; none if they take half of the free memory."""
    tensors = tensors_by_name(model)
    found = {name: tensors[name] for name in plan.by_tensor()}
    held = [tensor for tensor in found.values() if not tensor.is_meta]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    device = held[0].device if held else torch.device("cpu")
    memory = host_memory() if device.type == "cpu" else device_memory(device)
    return found if not size or (memory is not None and 2 * size <= memory.free) else {}


def _accepted_at_once(model: nn.Module, plan: Plan, repairs: Repairs, accept: Callable[[], bool]) -> bool:
    """Slice and repair a model; if it is not accepted, or does not run, it is as it was before."""
    tables: list[dict[str, Any]] = [
        table for module in model.modules() for table in (module._parameters, module._buffers)
    ]
    before = [dict(table) for table in tables]
    slice_tensors(model, plan)
    take_back = put(model, repairs)
    try:
        if accept():
            return True
    except FxpruneError:
        pass  # the dry runs that follow say where it stops
    take_back()
    for table, held in zip(tables, before, strict=True):
        table.update(held)
    return False


def _put_accepted(model: nn.Module, candidates: Iterable[Repairs], accept: Callable[[], bool]) -> Repairs:
    """Apply the first repairs with which ``accept`` agrees. An error of the model is no agreement: its forward may make
    modules anew when it first runs, which no repair reaches."""
    tried, what = 0, "runs but computes something else than its graph"
    for repairs in candidates:
        take_back = put(model, repairs)
        try:
            if accept():
                return repairs
        except Exception as error:  # whatever a model's own code raises
            if is_out_of_memory(error):
                raise
            what = f"does not run: {error.message if isinstance(error, FxpruneError) else class_and_first_line(error)}"
        take_back()
        tried += 1
    raise FxpruneError(
        f"the shrunken model {what} ({tried} ways to repair it were tried)",
        "please report the architecture; until then, do not prune this group",
    )


def smaller_shapes(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """The new shape of every sliced tensor.

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
