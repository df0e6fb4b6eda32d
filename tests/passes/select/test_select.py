"""Which units go: counts, ties, nested groups, and the head that must be the one removed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fxprune.ir import RequestError
from fxprune.ir.axes import Atom, ConcatAxis, ProductAxis
from fxprune.ir.groups import Group, Kind, Occurrence, Role
from fxprune.passes.couple.coupling import couple
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.score.random import Random
from fxprune.passes.score.taylor import Taylor
from fxprune.passes.score.units import unit_scores
from fxprune.passes.select.scope import Scope, chosen_groups
from fxprune.passes.select.select import best_units, counts_for, kept_count, select
from fxprune.passes.shrink.cut import join_plans
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.tracer.export import trace_causal_lm

from ...states import decoder_state

VOCAB = 61


def tiny(heads: int = 8, kv_heads: int = 2, layers: int = 2, width: int = 32, **overrides: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=heads, head_dim=4,
        num_key_value_heads=kv_heads, vocab_size=VOCAB, max_position_embeddings=64, **overrides,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@pytest.mark.parametrize(
    ("size", "ratio", "multiple", "kept"),
    [
        (11008, 0.25, 1, 8256), (32, 0.25, 1, 24), (3, 0.25, 1, 3), (8, 0.6, 1, 4), (704, 0.6, 1, 282),
        (10, 0.1, 1, 9), (10, 0.99, 1, 1), (10, 0.0, 1, 10), (704, 0.25, 64, 576), (60, 0.5, 64, 60),
        (100, 0.29, 1, 71),
    ],
)  # fmt: skip
def test_never_fewer_units_stay_than_the_ratio_keeps(size: int, ratio: float, multiple: int, kept: int) -> None:
    assert kept_count(size, ratio, multiple) == kept


def test_ties_go_to_the_lower_index_and_a_parent_keeps_its_own_best() -> None:
    parent = Group("kv", 0, 2, Kind.KV_HEADS, ())
    group = Group("q", 1, 3, Kind.QUERY_HEADS, (), parent)
    assert best_units(group, np.array([1.0, 3, 2, 5, 5, 5]), 2).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("sum", [7.0, 13]), ("mean", [3.5, 6.5]), ("max", [4.0, 7]), ("prod", [12.0, 42]), ("first", [4.0, 6]),
        ("last", [3.0, 7]),
    ],
)  # fmt: skip
def test_a_unit_sums_its_positions_and_members_are_reduced(reduce: str, expected: list[float]) -> None:
    half = ConcatAxis((Atom(0, 2), Atom(0, 2)))
    members = (Occurrence("a", 0, half, Role.OUT), Occurrence("b", 1, ProductAxis((Atom(1, 1), Atom(0, 2))), Role.IN))
    group = Group("g", 0, 2, Kind.WIDTH, members)
    vectors = {("a", 0): np.array([1.0, 2, 3, 4]), ("b", 1): np.array([3.0, 7])}
    assert unit_scores(group, vectors, reduce).tolist() == expected


@pytest.mark.parametrize("per_kv", [1, 2, 4, 8])
@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("make", [Magnitude, Taylor])
def test_a_zeroed_kv_head_is_the_one_removed(per_kv: int, position: int, make: Any) -> None:
    model = tiny(heads=4 * per_kv, kv_heads=4, layers=1)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for projection, width in ((attention.q_proj, 4 * per_kv), (attention.k_proj, 4), (attention.v_proj, 4)):
            projection.weight[position * width : (position + 1) * width] = 0
        attention.o_proj.weight[:, position * 4 * per_kv : (position + 1) * 4 * per_kv] = 0
    state = decoder_state(model)
    make(ratio=0.25, ffn=False).run(state)
    assert state.ledger.plan is not None
    (kept,) = state.ledger.plan.keep.values()
    assert kept.tolist() == [unit for unit in range(4) if unit != position]


@pytest.mark.parametrize("position", [0, 2, 7])
def test_a_zeroed_query_head_of_a_multi_query_model_is_the_one_removed(position: int) -> None:
    model = tiny(heads=8, kv_heads=1, layers=1)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight[position * 4 : position * 4 + 4] = 0
        attention.o_proj.weight[:, position * 4 : position * 4 + 4] = 0
    state = decoder_state(model)
    Taylor(ratio=0.125, ffn=False).run(state)
    assert state.ledger.plan is not None
    (kept,) = state.ledger.plan.keep.values()
    assert kept.tolist() == [unit for unit in range(8) if unit != position]


def test_each_kv_head_drops_its_own_worst_query_head() -> None:
    model = tiny(heads=8, kv_heads=2, layers=1)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for head in (1, 6):  # the second of the first kv head, the third of the second
            attention.q_proj.weight[head * 4 : head * 4 + 4] = 0
            attention.o_proj.weight[:, head * 4 : head * 4 + 4] = 0
    state = decoder_state(model)
    Magnitude(ratio=0.25, heads="query", ffn=False).run(state)
    assert state.ledger.plan is not None
    assert next(iter(state.ledger.plan.keep.values())).tolist() == [0, 2, 3, 4, 5, 7]
    assert attention.q_proj.weight.shape == (24, 32)


def test_two_passes_make_one_plan_on_the_original() -> None:
    model = tiny()
    source = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    state = decoder_state(model)
    Random(ratio=0.25, heads="off", seed=1).run(state)
    state.subject.coupling = couple(state.subject.graph)
    Random(ratio=0.5, channels=True, seed=2).run(state)
    assert state.ledger.plan is not None
    for name, tensor in model.named_parameters():
        expected = source[name]
        for dim in range(expected.dim()):
            kept = state.ledger.plan.slices.get((name, dim))
            expected = expected if kept is None else expected.index_select(dim, torch.from_numpy(kept))
        assert torch.equal(tensor, expected), name
    widths = [kept for name, kept in state.ledger.plan.keep.items() if name.endswith("mlp:width")]
    assert all(len(kept) == 9 and kept.max() < 24 for kept in widths)


def test_join_plans_numbers_units_on_the_original() -> None:
    traced = trace_causal_lm(tiny(layers=1))
    coupling = couple(traced.graph)
    (width,) = (group.name for group in coupling.groups.values() if group.kind is Kind.WIDTH)
    first = make_plan(coupling, {width: np.arange(1, 24, 2)})
    later = couple(rewrite(coupling, first))
    second = make_plan(later, {width: np.array([0, 11])})
    joined = join_plans(first, second, later)
    assert joined.keep[width].tolist() == [1, 23]


def test_layers_spare_the_others_and_the_residual_width() -> None:
    state = decoder_state(tiny(layers=3))
    Random(ratio=0.5, layers=(1, 2)).run(state)
    assert state.ledger.plan is not None
    assert {name.split(".")[2] for name, _ in state.ledger.plan.slices} == {"1"}


def group(size: int, **changes: Any) -> Group:
    return replace(Group("model.layers.0.mlp:width", 0, size, Kind.WIDTH, (), layer=0), **changes)


@pytest.mark.parametrize(
    ("size", "changes", "multiple_of", "steps", "least"),
    [
        (10, {}, 1, "width 10", 0.1),
        (10, {"multiple": 3}, 1, "width 10 in multiples of 3", 0.1),
        (300, {}, 128, "width 300 in multiples of 128", 0.147),
        (8, {"multiple": 4, "kind": Kind.EXPERTS}, 128, "experts 8 in multiples of 4", 0.5),
        (8, {"multiple": 8}, 1, "width 8 in multiples of 8", None),
        (3, {"minimum": 3, "kind": Kind.EXPERTS}, 1, "experts 3", None),
    ],
)
def test_a_ratio_that_rounds_to_nothing_is_told_the_least_that_does_not(
    size: int, changes: dict[str, Any], multiple_of: int, steps: str, least: float | None
) -> None:
    one = group(size, **changes)
    with pytest.raises(RequestError, match=f"ratio 0.01 is less than one step in groups of {steps}$") as caught:
        counts_for([one], 0.01, multiple_of)
    if least is None:
        assert "a ratio of" not in str(caught.value.hint)
        return
    assert f"give a ratio of {least:g} or more" in str(caught.value.hint)
    assert counts_for([one], least, multiple_of)[one.name] < size
    with pytest.raises(RequestError):
        counts_for([one], round(least - 0.002, 6), multiple_of)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: chosen_groups([group(4)], Scope((1, 2))), "no heads or .*query_heads or width group in layers 1:2"),
        (lambda: chosen_groups([group(4, frozen="because")], Scope()), "all 1 chosen groups are frozen; .*: becau"),
        (lambda: select([group(3)], {group(3).name: np.ones(3)}, 0.25), "ratio 0.25 is less than one step in groups"),
        (lambda: select([group(8)], {group(8).name: np.ones(8)}, 0.25, 8), "in multiples of 8"),
        (lambda: Random(ratio=1.0).check(), r"random: ratio=1 is outside \[0, 1\)"),
        (lambda: Random(ratio=-0.1).check(), r"random: ratio=-0.1 is outside"),
        (lambda: Random(multiple_of=0).check(), "random: multiple_of=0 is below 1"),
        (lambda: Random(heads="off", ffn=False).check(), "leave nothing to prune"),
        (lambda: Taylor(samples=0).check(), "taylor: samples=0 is below 1"),
        (lambda: Taylor(length=1).check(), "taylor: length=1 is below 2"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_taylor_without_text_asks_for_it() -> None:
    state = decoder_state(tiny(), calibration=None)
    with pytest.raises(RequestError, match="need calibration text") as caught:
        Taylor().run(state)
    assert "--calib" in caught.value.hint
    assert "generate" in caught.value.hint


def test_ratio_zero_changes_not_a_bit() -> None:
    model = tiny()
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        state = decoder_state(model)
        Magnitude(ratio=0.0).run(state)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert state.ledger.plan is not None
    assert state.ledger.plan.removes_nothing
