"""Removing experts is the same as router logits of minus infinity, in float64, for mixtures of many families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fxprune.backends.graph_module import raise_graph
from fxprune.ir.graph import Graph
from fxprune.ir.groups import Group, Kind
from fxprune.passes.couple.coupling import couple
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.tracer.export import Traced, trace_causal_lm

from ...equivalence import TOLERANCE, sliced, tensors_of
from ...families.causal_lm import VOCAB, tiny_config

SIX = {"num_experts": 6, "num_local_experts": 6}
GROUPS: dict[str, Any] = {"num_local_experts": 8, "first_k_dense_replace": 1}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", SIX),
    "qwen2_moe, with a shared expert": ("qwen2_moe", SIX),
    "qwen2_moe, weights not normalised": ("qwen2_moe", {**SIX, "norm_topk_prob": False}),
    "qwen3_moe": ("qwen3_moe", SIX),
    "olmoe": ("olmoe", SIX),
    "gpt_oss, with biases": ("gpt_oss", SIX),
    "deepseek_v2": ("deepseek_v2", {**SIX, "n_routed_experts": 6, "first_k_dense_replace": 1}),
    "deepseek_v3": ("deepseek_v3", {"num_local_experts": 6, "first_k_dense_replace": 1}),
    "deepseek_v3, two groups": ("deepseek_v3", {**GROUPS, "n_group": 2, "topk_group": 1}),
    "deepseek_v3, four groups, two picked": (
        "deepseek_v3",
        {**GROUPS, "num_local_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    ),
}


def model_of(family: str) -> Any:
    """Random weights; a router's large enough that its choices are far from ties."""
    name, fields = FAMILIES[family]
    config = tiny_config(name)
    for key, value in fields.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            if "inv_freq" not in name:
                tensor.normal_(0, 0.3, generator=generator)
    return model


class Never(torch.nn.Module):
    """Logits ``[..., experts]`` with those of some experts at minus infinity."""

    def __init__(self, experts: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.experts = torch.from_numpy(experts)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, self.experts, -torch.inf)


def logits(
    graph: Graph,
    tensors: Mapping[str, torch.Tensor],
    traced: Traced,
    gone: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> torch.Tensor:
    """In float64 throughout; ``gone`` names experts whose router logits are minus infinity, by the router's weight."""
    ids = torch.randint(0, VOCAB, tuple(traced.example["input_ids"].shape), generator=torch.Generator().manual_seed(0))
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    module = raise_graph(graph, values, traced.constants, dtype=torch.float64)
    for number, (name, experts) in enumerate((gone or {}).items()):
        module.add_module(f"never_{number}", Never(experts))
        weight = next(node for node in module.graph.nodes if node.op == "get_attr" and node.target == name)
        (router,) = weight.users
        with module.graph.inserting_after(router):
            masked = module.graph.call_module(f"never_{number}", (router,))
        router.replace_all_uses_with(masked, delete_user_cb=lambda user, own=masked: user is not own)
    module.recompile()
    found: torch.Tensor = module(ids)[0]
    return found


def units_to_keep(group: Group) -> np.ndarray[Any, np.dtype[np.int64]]:
    """All but one; of nested experts other ones in every group."""
    parents = group.parent.size if group.parent else 1
    rows = [
        parent * group.size + np.delete(np.arange(group.size), (parent + 1) % group.size) for parent in range(parents)
    ]
    return np.concatenate(rows).astype(np.int64)


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_experts_are_those_with_logits_of_minus_infinity(family: str) -> None:
    model = model_of(family)
    traced = trace_causal_lm(model)
    coupling = couple(traced.graph)
    found = [group for group in coupling.prunable if group.kind is Kind.EXPERTS]
    outer = {group.parent.name for group in found if group.parent}
    groups = [group for group in found if group.name not in outer]
    assert groups
    tensors = dict(tensors_of(model))
    gone: dict[str, Any] = {}
    keep = {group.name: units_to_keep(group) for group in groups}
    for group in groups:
        axes = {(m.tensor, m.dim): group.unit_map(m.axis) for m in group.members}
        router = next(name for name, dim in axes if dim == 0 and tensors[name].dim() == 2 and "bias" not in name)
        gone[router] = np.flatnonzero(~np.isin(axes[router, 0], keep[group.name]))
        for name, _ in axes:  # what is added to scores only to choose must not bring a removed expert back
            if "correction" in name:
                tensors[name] = tensors[name].index_fill(0, torch.from_numpy(gone[router]), -torch.inf)
    masked = logits(traced.graph, tensors, traced, gone)
    plan = make_plan(coupling, keep)
    smaller = logits(rewrite(coupling, plan), sliced(plan, tensors_of(model)), traced)
    dense = logits(traced.graph, tensors_of(model), traced)
    scale = masked.abs().max()
    assert float((smaller - masked).abs().max() / scale) <= TOLERANCE
    assert float((dense - masked).abs().max() / scale) > 1e-3, "the experts mattered"


def test_a_group_of_experts_keeps_what_a_token_may_need_of_it() -> None:
    """Two of four groups are picked, and three experts: a token may find at most two times what a group keeps."""
    coupling = couple(trace_causal_lm(model_of("deepseek_v3, four groups, two picked")).graph)
    (group,) = [g for g in coupling.groups.values() if g.kind is Kind.EXPERTS and g.parent is not None]
    assert (group.size, group.minimum) == (3, 2)
    (alone,) = [
        g
        for g in couple(trace_causal_lm(model_of("deepseek_v3, two groups")).graph).groups.values()
        if g.kind is Kind.EXPERTS and g.parent is not None
    ]
    assert (alone.size, alone.minimum, alone.parent and alone.parent.size) == (4, 2, 2)
