"""Whole experts of a mixture: removed with their router rows, never fewer than a token needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssForCausalLM, MixtralForCausalLM

from fxprune.api.pruning.request import apply
from fxprune.backends.graph_module import raise_graph
from fxprune.ir import RequestError
from fxprune.ir.graph import Graph
from fxprune.ir.groups import Group, Kind
from fxprune.passes.couple.coupling import VALUES, Coupling, couple
from fxprune.passes.couple.explain import why
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.tracer.export import Traced, trace_causal_lm, trace_model

from ..equivalence import TOLERANCE, sliced, tensors_of
from .causal_lm import tiny_config, tiny_model

KEPT = [0, 2, 3]


def experts(coupling: Coupling) -> list[Group]:
    return [group for group in coupling.groups.values() if group.kind is Kind.EXPERTS]


def logits(graph: Graph, tensors: Mapping[str, torch.Tensor], traced: Traced) -> torch.Tensor:
    """In float64 throughout; the model's own code computes its norms in float32."""
    shape = traced.example["input_ids"].shape
    ids = torch.randint(0, 131, shape, generator=torch.Generator().manual_seed(0))
    values = {name: tensor.detach() for name, tensor in tensors.items()}
    found: torch.Tensor = raise_graph(graph, values, traced.constants, dtype=torch.float64)(ids)[0]
    return found


def pruned(traced: Traced, coupling: Coupling, model: torch.nn.Module) -> torch.Tensor:
    """Logits of the rewritten graph without expert 1 of every layer."""
    plan = make_plan(coupling, {group.name: np.array(KEPT) for group in experts(coupling)})
    return logits(rewrite(coupling, plan), sliced(plan, tensors_of(model)), traced)


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def test_removing_an_expert_is_never_picking_it() -> None:
    """A router whose bias is far below all others never picks its expert: the dense model is its own reference."""
    model = tiny_model("gpt_oss")
    assert isinstance(model, GptOssForCausalLM)
    traced = trace_causal_lm(model)
    coupling = couple(traced.graph)
    assert [(group.size, group.minimum, group.frozen) for group in experts(coupling)] == [(4, 2, None)] * 2
    dense = logits(traced.graph, tensors_of(model), traced)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.bias[1] = -1e9
    masked = logits(traced.graph, tensors_of(model), traced)
    assert difference(pruned(traced, coupling, model), masked) <= TOLERANCE
    assert difference(dense, masked) > 1e-3, "the expert mattered"


def test_it_is_the_smaller_model_of_its_own_class() -> None:
    model = tiny_model("mixtral")
    traced = trace_causal_lm(model)
    coupling = couple(traced.graph)
    config = tiny_config("mixtral")
    config.num_local_experts = len(KEPT)
    smaller = MixtralForCausalLM(config).eval()
    weights = dict(model.state_dict())
    for name in weights:
        if "experts" in name or "gate.weight" in name:
            weights[name] = weights[name][KEPT]
    smaller.load_state_dict(weights)
    ids = traced.example["input_ids"]
    again = trace_model(smaller, {"input_ids": ids, "use_cache": False}, output="logits")
    expected = logits(again.graph, tensors_of(smaller), again)
    assert difference(pruned(traced, coupling, model), expected) <= TOLERANCE


def test_an_artifact_has_fewer_experts_and_enough_of_them(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "source")
    out = tmp_path / "out"
    applied = apply(tmp_path / "source", "magnitude{heads=off,ffn=false,experts=true}", ratio=0.9, out=out)
    assert {change.after for change in applied.groups} == {2}, "a token needs two"
    assert applied.saved is not None
    assert applied.saved.form == "uniform"
    assert AutoModelForCausalLM.from_pretrained(out).config.num_local_experts == 2


def test_widths_per_layer_run_by_the_implementation_of_the_original(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path / "source")
    applied = apply(tmp_path / "source", "random{heads=off}", ratio=0.4, layers=(1, 2), out=tmp_path / "out")
    assert applied.saved is not None
    assert applied.saved.form == "free"
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.get_experts_implementation() == original.get_experts_implementation()


def test_a_plan_that_keeps_too_few_is_refused() -> None:
    coupling = couple(trace_causal_lm(tiny_model("mixtral", device="meta")).graph)
    with pytest.raises(RequestError, match=r"keeps 1 units of .*experts, but every token needs 2"):
        make_plan(coupling, {experts(coupling)[0].name: np.array([3])})


class Router(torch.nn.Module):
    """Picks rows of a table by the largest scores, and may do more with what it picked."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.scores = torch.nn.Linear(3, 6)
        self.table = torch.nn.Parameter(torch.randn(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        ids = self.scores(x).topk(2).indices
        rows = self.table[ids.flatten()].sum(0)
        if self.use == "counted":
            return rows + ids.sum()
        if self.use == "returned":
            return rows, ids
        if self.use == "offset":
            return rows + self.table[(ids + 1).clamp(max=5)].sum((0, 1))
        if self.use == "picked from":
            return rows + self.table[ids.gather(1, torch.zeros(5, 2, dtype=torch.long)).flatten()].sum(0)
        return rows


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("looked up", None),
        ("counted", "computes with positions of the axis (aten.sum"),
        ("returned", "output of the model"),
        ("offset", "computes with positions of the axis (aten.add"),
        ("picked from", "computes with positions of the axis (aten.gather"),
    ],
)
def test_positions_that_do_more_than_look_up_freeze_the_axis(use: str, reason: str | None) -> None:
    traced = trace_model(Router(use).eval(), {"x": torch.zeros(5, 3)})
    (group,) = experts(couple(traced.graph))
    assert group.tensors == {"scores.weight", "scores.bias", "table"}
    if reason is None:
        assert group.frozen is None
    else:
        assert (group.frozen or "").startswith(reason)


def test_the_network_says_why_an_expert_goes_with_its_router_row() -> None:
    coupling = couple(trace_causal_lm(tiny_model("mixtral", device="meta")).graph)
    path = why(coupling, "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.down_proj")[
        "model.layers.0.mlp:experts"
    ]
    packets = [op.packet for _, _, op in path if op is not None]
    assert packets[0] == "aten.linear"
    assert "aten.topk" in packets
    assert packets[-1] == "aten.index"
    assert [dim for value, dim, _ in path if dim == VALUES and value in coupling.positions], "through the picks"
    parts = [{atom for _, _, atom in part} for part in nx.connected_components(coupling.network)]
    assert all(len(atoms) == 1 for atoms in parts)
    assert {group.atom for group in experts(coupling)} <= {atom for (atom,) in parts}
    assert len(parts) == len({atom for (atom,) in parts}), "a group is one component"
