"""The conscience of the project: removing units equals zeroing them in the original, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fxprune.backends.graph_module import raise_graph
from fxprune.ir import Indices, Plan
from fxprune.ir.groups import Group
from fxprune.ir.verifier import verify
from fxprune.passes.couple.coupling import Coupling
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.runtime.tensors import own_copy, tensors_by_name
from fxprune.tracer.export import Traced

TOLERANCE = 1e-10
"""On logits relative to their largest magnitude, float64: about 1e6 roundings of 1e-16."""


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by every name."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def random_units(group: Group, generator: np.random.Generator, parents: Indices | None = None) -> Indices:
    """Units to keep: at least one goes and at least one stays; equally many per parent unit in a nested group."""
    count = int(generator.integers(1, group.size)) if group.size > 1 else 1
    if group.parent is None:
        return np.sort(generator.choice(group.size, count, replace=False))
    chosen = [
        parent * group.size + np.sort(generator.choice(group.size, count, replace=False))
        for parent in (np.arange(group.parent.size) if parents is None else parents)
    ]
    return np.concatenate(chosen)


def draw_plan(coupling: Coupling, data: st.DataObject) -> dict[str, Any]:
    """Units of some groups that no normalisation crosses; every parent keeps its own, equally many."""
    free = [group for group in coupling.prunable if not group.normalised and group.size > 1]
    chosen = data.draw(st.lists(st.sampled_from(free), min_size=1, unique_by=lambda group: group.name))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    keep: dict[str, Any] = {}
    for group in sorted(chosen, key=lambda group: group.parent is not None):
        parents = keep.get(group.parent.name) if group.parent else None
        keep[group.name] = random_units(group, generator, parents)
    return keep


def zeroed(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The original tensors with every removed unit set to zero wherever it stands."""
    masked = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for (name, dim), kept in plan.slices.items():
        gone = np.setdiff1d(np.arange(masked[name].shape[dim]), kept)
        masked[name].index_fill_(dim, torch.from_numpy(gone), 0.0)
    return masked


def masked(dense: torch.nn.Module, plan: Plan, spare: Set[tuple[str, int]] = frozenset()) -> torch.nn.Module:
    """A copy of a module with every removed unit zero wherever it stands, but in the spared (tensor, dimension)s."""
    copied = own_copy(dense)
    rest = Plan(plan.keep, {place: kept for place, kept in plan.slices.items() if place not in spare})
    with torch.no_grad():
        tensors = tensors_by_name(copied)
        for name, value in zeroed(rest, tensors).items():
            tensors[name].copy_(value)
    return copied


def sliced(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    small = dict(tensors)
    for (name, dim), kept in plan.slices.items():
        small[name] = small[name].index_select(dim, torch.from_numpy(kept))
    return small


def difference(
    traced: Traced,
    coupling: Coupling,
    model: torch.nn.Module,
    keep: Mapping[str, Any],
    seed: int = 0,
    *,
    given: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """Largest difference between the rewritten graph and the zero-masked original, relative to the logits' scale, on
    random inputs or, by their names, on given ones."""
    plan = make_plan(coupling, keep)
    after = rewrite(coupling, plan)
    verify(after)
    tensors = tensors_of(model)
    dense = raise_graph(traced.graph, zeroed(plan, tensors), traced.constants, dtype=torch.float64)
    small = raise_graph(after, sliced(plan, tensors), traced.constants, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    inputs = [_random_input(value, generator) for value in traced.graph.inputs]
    if given is not None:
        held = [given[value.name] for value in traced.graph.inputs]
        inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in held]
    with torch.no_grad():
        pairs = list(zip(dense(*inputs), small(*inputs), strict=True))
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs)


def _random_input(value: Any, generator: torch.Generator) -> torch.Tensor:
    if value.dtype.is_float:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return torch.randint(0, 32, value.shape, generator=generator)


def restricted(dense: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """The zero-masked original, whose group and layer norms see the kept channels only: what a cut that norms cross
    must compute."""
    copied = masked(dense, plan)
    for name, module in copied.named_modules():
        kept = plan.slices.get((f"{name}.weight", 0))
        if kept is not None and isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.register_forward_hook(_on_kept(torch.from_numpy(kept)))
    return copied


def _on_kept(kept: torch.Tensor) -> Any:
    def hook(norm: Any, inputs: tuple[torch.Tensor], _: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        grouped = isinstance(norm, torch.nn.GroupNorm)
        dim = 1 if grouped else x.dim() - 1
        seen, weight, bias = x.index_select(dim, kept), norm.weight[kept], norm.bias[kept]
        if grouped:
            made = torch.nn.functional.group_norm(seen, norm.num_groups, weight, bias, norm.eps)
        else:
            made = torch.nn.functional.layer_norm(seen, (len(kept),), weight, bias, norm.eps)
        return torch.zeros_like(x).index_copy(dim, kept, made)

    return hook
