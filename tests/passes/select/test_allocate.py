"""Allocation: the knapsack is exact, costs are those of the cut model, budgets are met."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fxprune.ir import RequestError
from fxprune.ir.cost import macs
from fxprune.ir.groups import Kind
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.model.measure import byte_count, parameter_count
from fxprune.passes.pruning import allocated
from fxprune.passes.score.fisher import Fisher
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.score.obs import Obs
from fxprune.passes.score.random import Random
from fxprune.passes.score.taylor import Taylor
from fxprune.passes.score.wanda import Wanda
from fxprune.passes.select.allocate import Knapsack, LossCurve, even, levels, tied
from fxprune.passes.select.costs import Costs, dense_cost
from fxprune.passes.select.select import best_units
from fxprune.passes.select.sensitivity import DivergenceGauge, UnitMask
from fxprune.passes.select.target import BUDGET_TOLERANCE, Target
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import trace_causal_lm

from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...states import decoder_state, run_passes, state_of

VOCAB = 61
TEXT = RandomTokens(VOCAB)
SHARED = special_tokens(VOCAB)
LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 8, "head_dim": 4,
    "tie_word_embeddings": True, **SHARED,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(num_key_value_heads=8, **LLAMA),
    "mistral": lambda: transformers.MistralConfig(num_key_value_heads=4, **LLAMA),
    "qwen3": lambda: transformers.Qwen3Config(num_key_value_heads=2, **LLAMA),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_inner=192, n_layer=3, n_head=8, n_positions=64, **SHARED),
    "phi3": lambda: transformers.Phi3Config(num_key_value_heads=8, **LLAMA),
}
BUDGETS = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96)


def make(kind: str = "llama") -> Any:
    return random_decoder(CONFIGS[kind](), 0.2)


@pytest.fixture(scope="module")
def couplings() -> dict[str, Coupling]:
    found = {}
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config(), dtype=torch.float32).eval()
        found[name] = couple(trace_causal_lm(model).graph)
    return found


def brute_force(curves: list[LossCurve], budget: int) -> float:
    """The least loss of all combinations whose costs fit."""
    options = [list(zip(curve.losses, curve.costs, strict=True)) for curve in curves]
    return min(sum(loss for loss, _ in c) for c in itertools.product(*options) if sum(cost for _, cost in c) <= budget)


@pytest.mark.parametrize("seed", range(8))
def test_the_dynamic_programme_equals_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    curves = []
    for number in range(5):
        size = int(generator.integers(1, 6))
        costs = np.concatenate([[0], generator.integers(1, 40, size).cumsum()])
        curves.append(LossCurve((str(number),), np.arange(1, size + 2), generator.random(size + 1), costs))
    whole = sum(int(curve.costs[-1]) for curve in curves)
    table = Knapsack(curves, whole)
    for budget in range(0, whole + 1, 7):
        chosen = table.at(budget)
        assert sum(int(c.costs[at]) for c, at in zip(curves, chosen, strict=True)) <= budget
        loss = sum(float(c.losses[at]) for c, at in zip(curves, chosen, strict=True))
        assert loss == pytest.approx(brute_force(curves, budget), rel=1e-12)


def test_costs_beyond_the_cells_are_rounded_so_that_they_still_fit() -> None:
    generator = np.random.default_rng(0)
    curves = [
        LossCurve(
            (str(n),), np.arange(1, 9), np.sort(generator.random(8))[::-1], np.arange(8) * int(generator.integers(1e9))
        )
        for n in range(6)
    ]
    table = Knapsack(curves, sum(int(curve.costs[-1]) for curve in curves))
    assert table.cell > 1
    budget = sum(int(curve.costs[-1]) for curve in curves) // 2
    chosen = table.at(budget)
    assert 0.9 * budget < sum(int(c.costs[at]) for c, at in zip(curves, chosen, strict=True)) <= budget


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("measure", ["params", "bytes", "macs"])
def test_a_cost_is_what_the_rewritten_graph_costs(couplings: dict[str, Coupling], kind: str, measure: str) -> None:
    coupling = couplings[kind]
    groups = [g for g in coupling.prunable if g.kind in (Kind.HEADS, Kind.KV_HEADS, Kind.WIDTH, Kind.CHANNELS)]
    costs = Costs(coupling, [g.name for g in groups], measure)
    assert costs.of({}) == dense_cost(coupling.graph, measure)
    generator = np.random.default_rng(1)
    for _ in range(3):
        counts = {g.name: int(generator.integers(1, g.size + 1)) for g in groups}
        keep = {g.name: best_units(g, generator.random(g.units), counts[g.name]) for g in groups}
        assert costs.of(counts) == dense_cost(rewrite(coupling, make_plan(coupling, keep)), measure)


def test_the_dense_costs_are_those_of_the_model() -> None:
    state = decoder_state(make("gpt2"))
    assert dense_cost(state.subject.graph, "params") == parameter_count(state.subject.model)
    assert dense_cost(state.subject.graph, "bytes") == byte_count(state.subject.model)
    assert dense_cost(state.subject.graph, "macs") == macs(state.subject.graph)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("by", ["uniform", "kinds", "global"])
def test_ten_budgets_are_met(couplings: dict[str, Coupling], kind: str, by: str) -> None:
    coupling = couplings[kind]
    for share in BUDGETS:
        step = Random(target=f"params:{share}", by=by)
        state = state_of(coupling.graph, torch.nn.Module(), coupling=coupling, whole=coupling.graph)
        groups = [g for g in coupling.prunable if g.kind in (Kind.HEADS, Kind.KV_HEADS, Kind.WIDTH)]
        keep, report = allocated(step, groups, state, coupling)
        kept = dense_cost(rewrite(coupling, make_plan(coupling, keep)), "params")
        assert kept == report["reached"]
        assert abs(kept / dense_cost(coupling.graph, "params") - share) <= 0.005 * share
        widths = {(g.kind, len(keep[g.name])) for g in groups}
        assert (len(widths) == len({g.kind for g in groups})) == (by != "global")


@pytest.mark.parametrize("target", ["macs:0.7", "bytes:0.7", "params:20000"])
def test_what_is_asked_of_the_model_is_what_comes_out(target: str) -> None:
    model = make()
    state = decoder_state(model)
    dense = {"params": parameter_count(model), "bytes": byte_count(model), "macs": macs(state.subject.graph)}
    run_passes(state, Magnitude(target=target, by="global"))
    asked = Target.parse(target)
    measured = {"params": parameter_count(model), "bytes": byte_count(model), "macs": macs(state.subject.graph)}
    assert measured[asked.measure] == pytest.approx(asked.amount(dense[asked.measure]), rel=0.005)
    assert model(input_ids=TEXT.windows(8, 2)).logits.isfinite().all()


def test_a_share_is_of_the_model_before_any_pass() -> None:
    model = make()
    before = parameter_count(model)
    run_passes(
        decoder_state(model),
        Magnitude(target="params:0.8"),
        Fisher(target="params:0.6", by="global", samples=4, length=8),
    )
    assert parameter_count(model) == pytest.approx(0.6 * before, rel=0.005)


def test_without_a_target_the_budget_is_what_the_ratio_leaves() -> None:
    reached = []
    for by in ("uniform", "global"):
        model = make()
        run_passes(decoder_state(model), Magnitude(ratio=0.25, by=by))
        reached.append(parameter_count(model))
    assert reached[1] == pytest.approx(reached[0], rel=0.005)


def test_uniform_is_one_ratio_as_near_as_units_allow(couplings: dict[str, Coupling]) -> None:
    coupling = couplings["llama"]
    groups = [g for g in coupling.prunable if g.kind in (Kind.HEADS, Kind.WIDTH)]
    state = state_of(coupling.graph, torch.nn.Module(), coupling=coupling, whole=coupling.graph)
    keep, _ = allocated(Random(target="params:0.7"), groups, state, coupling)
    ratios = [1 - len(keep[g.name]) / g.size for g in groups]
    assert max(ratios) - min(ratios) <= 1 / 8


def test_widths_are_multiples(couplings: dict[str, Coupling]) -> None:
    coupling = couplings["llama"]
    groups = [g for g in coupling.prunable if g.kind is Kind.WIDTH]
    state = state_of(coupling.graph, torch.nn.Module(), coupling=coupling, whole=coupling.graph)
    keep, _ = allocated(Random(target="params:0.8", by="global", multiple_of=2), groups, state, coupling)
    assert all(len(keep[g.name]) % 2 == 0 for g in groups)
    assert levels(100, 8, 17).tolist() == [24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 100]
    thinned = levels(11008, 1, 1)
    assert (len(thinned), thinned[0], thinned[-1]) == (256, 1, 11008)


def test_equal_groups_are_tied_and_even_curves_want_equal_ratios() -> None:
    curve = LossCurve(("a",), np.array([1, 2, 4]), np.array([3.0, 1.0, 0.0]), np.array([0, 10, 30]))
    both = tied([curve, replace(curve, groups=("b",)), replace(curve, groups=("c",))], ["x", "y", "x"])
    assert [c.groups for c in both] == [("a", "c"), ("b",)]
    assert (both[0].losses.tolist(), both[0].costs.tolist()) == ([6.0, 2.0, 0.0], [0, 20, 60])
    assert even({"b": 4}, both[1:])[0].losses.tolist() == [10 * 2 * 0.75 + 20 * 2 * 0.5, 20 * 2 * 0.5, 0.0]


@pytest.mark.parametrize(
    ("removed", "kept"), [(20, (3, 80)), (32, (3, 68)), (34, (3, 66)), (50, (2, 65)), (60, (2, 55)), (95, (1, 35))]
)
def test_a_coarse_group_loses_no_more_than_the_fine_one(removed: int, kept: tuple[int, int]) -> None:
    """Three heads of 15 beside a hundred columns of 1: a head goes where the columns would lose more than its share."""
    heads = LossCurve(("heads",), np.array([1, 2, 3]), np.zeros(3), np.array([0, 15, 30]))
    width = LossCurve(("width",), np.arange(1, 101), np.zeros(100), np.arange(100))
    curves = even({"heads": 3, "width": 100}, [heads, width])
    levels = Knapsack(curves, 129).at(129 - removed)
    assert tuple(int(curve.counts[level]) for curve, level in zip(curves, levels, strict=True)) == kept


def test_a_loss_that_the_scores_see_is_avoided() -> None:
    """All units of one layer are silent: a global budget takes them, and no other."""
    model = make()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    state = run_passes(decoder_state(model), Fisher(target="params:0.8", by="global", heads="off", samples=4, length=8))
    assert state.ledger.plan is not None
    assert list(state.ledger.plan.keep) == ["model.layers.1.mlp:width"]


@pytest.mark.parametrize("step", [Wanda, Obs, Taylor])
def test_scores_of_their_own_unit_are_set_in_relation(step: Any) -> None:
    """A layer whose activations are a thousand times larger, and its weights as much smaller, is nothing special."""
    kept = []
    for factor in (1.0, 1000.0):
        model = make()
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(factor)
            model.model.layers[1].mlp.down_proj.weight.div_(factor)
        state = run_passes(decoder_state(model), step(target="params:0.8", by="global", samples=4, length=8))
        assert state.ledger.plan is not None
        kept.append({name: units.tolist() for name, units in state.ledger.plan.keep.items()})
    assert kept[0] == kept[1]


def distance_of(divergence: DivergenceGauge, unit_mask: UnitMask, keep: Any) -> float:
    with unit_mask.silencing():
        unit_mask.keep(keep)
        return divergence.read()


def test_a_silenced_group_is_as_far_from_the_dense_model_as_the_cut_one() -> None:
    model = make("gpt2")
    state = decoder_state(model)
    coupling = state.subject.coupling
    assert coupling is not None
    groups = [g for g in coupling.prunable if g.kind in (Kind.HEADS, Kind.WIDTH)]
    divergence = DivergenceGauge.of(state.subject.runner, state.data, samples=6, length=8, seed=None, batch=4)
    keep = {g.name: best_units(g, np.random.default_rng(0).random(g.units), g.size // 2) for g in groups}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    silenced = distance_of(divergence, UnitMask(BlockRunner(model), coupling.graph, groups), keep)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        dense = model(input_ids=TEXT.windows(8, 6)).logits.log_softmax(-1)
    scores = {g.name: np.isin(np.arange(g.units), keep[g.name]).astype(float) for g in groups}
    picked = Magnitude(ratio=0.5)
    object.__setattr__(picked, "scores", lambda _groups, _state: scores)
    run_passes(state, picked)
    with torch.no_grad():
        pruned = model(input_ids=TEXT.windows(8, 6)).logits.log_softmax(-1)
    expected = float((dense.exp() * (dense - pruned)).sum(-1).mean())
    assert silenced == pytest.approx(expected, rel=1e-5)
    assert silenced > 1e-3


def test_a_search_ends_nearer_than_where_it_started() -> None:
    distances = []
    for moves in (0, 24):
        model = make()
        options: dict[str, Any] = {"target": "params:0.6", "samples": 4, "length": 8, "moves": moves}
        state = run_passes(decoder_state(model), Wanda(by="search", **options))
        allocation = state.ledger.report["wanda"]["allocation"]
        distances.append(allocation["distance"])
        assert parameter_count(model) == allocation["reached"] <= allocation["budget"]
    assert distances[1] < distances[0]


def refusal(**options: Any) -> Any:
    return lambda: run_passes(decoder_state(make()), Magnitude(**options))


def coarse() -> Any:
    return run_passes(
        decoder_state(make("qwen3")), Magnitude(target="params:0.99", by="global", ffn=False, layers=(1, 2))
    )


@pytest.mark.parametrize(
    "coarse",
    [
        {"by": "uniform", "multiple_of": 16},
        {"by": "kinds", "multiple_of": 16},
        {"by": "global", "multiple_of": 64, "heads": "off"},
    ],
    ids=["uniform", "kinds", "global"],
)
def test_coarse_steps_meet_a_budget_with_the_tolerance_that_the_error_names(coarse: dict[str, Any]) -> None:
    options: dict[str, Any] = {"target": "params:0.7", **coarse}
    with pytest.raises(RequestError, match=r"no plan meets a budget of [\d,]+ within 0.5%") as caught:
        run_passes(decoder_state(make()), Magnitude(**options))
    named = re.search(r"or tolerance=([\d.]+);", caught.value.hint)
    assert named is not None
    tolerance = float(named[1])
    assert tolerance > BUDGET_TOLERANCE
    state = run_passes(decoder_state(make()), Magnitude(**options, tolerance=tolerance))
    found = state.ledger.report["magnitude"]["allocation"]
    assert BUDGET_TOLERANCE < abs(found["reached"] / found["budget"] - 1) <= tolerance
    with pytest.raises(RequestError, match="no plan meets"):
        run_passes(decoder_state(make()), Magnitude(**options, tolerance=tolerance - 0.001))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Magnitude(tolerance=0.1).check(), "tolerance=0.1 has no effect: there is no budget"),
        (lambda: Magnitude(target="params:0.8", tolerance=-0.1).check(), "tolerance=-0.1 is outside"),
        (lambda: Magnitude(target="speed:0.8").check(), "target 'speed:0.8' has no measure"),
        (lambda: Magnitude(target="params:some").check(), "target 'params:some' needs a share between 0 and 1"),
        (lambda: Magnitude(target="latency:10ms").check(), "target 'latency:10ms' needs a share between 0 and 1$"),
        (lambda: Magnitude(target="params:1").check(), "target 'params:1' needs a share"),
        (
            lambda: Magnitude(target="params:2").check(),
            "target 'params:2' is an amount of 2, and no model is",
        ),
        (lambda: Magnitude(target="params:-3").check(), "target 'params:-3' needs a share"),
        (lambda: Magnitude(target="params:1.5").check(), "target 'params:1.5' is above what the model has as a share"),
        (lambda: Magnitude(target="bytes:1000").check(), "target 'bytes:1000' is an amount"),
        (lambda: Magnitude(moves=-1).check(), "magnitude: moves=-1 is below 0"),
        (
            refusal(target="params:1e6"),
            r"target params=1e\+06 is 1,000,000, and the model already has .*: nothing would be",
        ),
        (refusal(target="params:0.01"), r"no plan meets a budget of \d\d\d within 0.5%: the nearest costs [\d,]+, 0.0"),
        (coarse, r"no plan meets a budget of [\d,]+ within 0.5%: the nearest costs [\d,]+, 0.9"),
        (
            refusal(target="params:0.8", by="search", channels=True),
            "by=search sets units to zero, which for model:channels is not the same",
        ),
    ],
)
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_no_tolerance_is_named_that_is_not_allowed() -> None:
    with pytest.raises(RequestError, match="no plan meets a budget of 200 within") as caught:
        refusal(target="params:200")()
    assert "tolerance" not in caught.value.hint


def test_a_search_needs_text() -> None:
    state = decoder_state(make(), calibration=None)
    with pytest.raises(RequestError, match="by=search needs calibration text"):
        run_passes(state, Magnitude(target="params:0.8", by="search"))


def test_a_search_needs_weights() -> None:
    state = decoder_state(make().to("meta"))
    with pytest.raises(RequestError, match="by=search runs the model, but its weights are not in memory"):
        run_passes(state, Random(target="params:0.8", by="search"))


def test_a_distance_that_is_not_finite_is_a_failure() -> None:
    from fxprune.ir import FxpruneError

    model = make()
    data = decoder_state(model).data
    divergence = DivergenceGauge.of(BlockRunner(model), data, samples=2, length=4, seed=None, batch=2)
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FxpruneError, match="the distance from the dense model is nan"):
        divergence.read()
