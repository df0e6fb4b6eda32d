"""Values of heads in another basis: the model computes the same, and channels of values that go are zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from torch import nn

from fxprune.backends.graph_module import raise_graph
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.ir.groups import Kind
from fxprune.passes.pruning import scope_of
from fxprune.passes.score.obs import Obs
from fxprune.passes.select.scope import chosen_groups
from fxprune.passes.shrink.cut import cut
from fxprune.passes.turn import turned_values
from fxprune.passes.turn.turned_values import basis
from fxprune.passes.turn.values import head_values
from fxprune.passes.turn.values_held import ValuesHeld
from fxprune.runtime.model.held_values import held_values, narrow_values
from fxprune.runtime.tensors import own_copy, tensors_by_name
from fxprune.runtime.tolerances import relative_difference

from ...decoders import gpt2, random_decoder, special_tokens
from ...equivalence import TOLERANCE, masked, random_units, tensors_of, zeroed
from ...states import decoder_state, module_state, run_passes

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, **special_tokens(40),
}  # fmt: skip
CONFIGS = {
    "one head for each": t.LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "groups of heads": t.LlamaConfig(**SHAPE),
    "one head of values": t.LlamaConfig(**{**SHAPE, "num_key_value_heads": 1}),
    "biases on both sides": t.LlamaConfig(**SHAPE, attention_bias=True),
    "biases of values": t.Qwen2Config(**SHAPE),
    "norms of queries": t.Qwen3Config(**SHAPE),
    "windows": t.MistralConfig(**SHAPE, sliding_window=6),
    "learned positions": t.OPTConfig(
        hidden_size=32, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, **special_tokens(40),
    ),
}  # fmt: skip
TURN = "turn{samples=4,length=12,seed=0}"
TOKENS = torch.arange(24).view(2, 12)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_a_turned_model_computes_the_same_and_its_narrower_values_are_zeros(name: str) -> None:
    model = random_decoder(CONFIGS[name], 0.3)
    before, values = logits(model), own_copy(model)
    state = run_passes(decoder_state(model), TURN)
    assert relative_difference(logits(model), before) < TOLERANCE
    assert len(held_values(model)) == 4
    assert not narrow_values(model)
    assert state.ledger.report["turn"] == {"attentions": 2}
    changed = [n for n, tensor in tensors_by_name(model).items() if not tensor.equal(tensors_by_name(values)[n])]
    assert {n.rpartition(".")[0] for n in changed} == set(held_values(model))

    dense, whole = own_copy(model), state.subject.graph
    state = run_passes(state, "magnitude{ratio=0.3,values=true}")
    plan = state.ledger.plan
    assert plan is not None
    kept = [len(units) for group, units in plan.keep.items() if "head_dim" in group]
    assert kept == 2 * [6]
    assert not any("heads" in group for group in plan.keep)
    assert len(narrow_values(model)) == 4
    reference = logits(masked(dense, plan))
    assert relative_difference(logits(model), reference) < TOLERANCE
    assert not torch.allclose(reference, before)
    inputs = [state.subject.example[value.name] for value in whole.inputs]
    with torch.no_grad():
        (expected, *_) = raise_graph(whole, zeroed(plan, tensors_of(dense)), {}, dtype=torch.float64)(*inputs)
        (rows, *_) = raise_graph(state.subject.graph, tensors_of(model), {}, dtype=torch.float64)(*inputs)
    assert relative_difference(rows, expected) < TOLERANCE


def test_scores_with_refits_choose_channels_of_values() -> None:
    model = random_decoder(CONFIGS["groups of heads"], 0.3)
    dense = logits(model)
    short = "samples=4,length=12,seed=0"
    text = f"{TURN},obs{{values=true,by=global,target=params:0.85,tolerance=0.03,{short}}},compensate{{{short}}}"
    state = run_passes(decoder_state(model), text)
    assert state.ledger.plan is not None
    assert any("head_dim" in group for group in state.ledger.plan.keep)
    assert relative_difference(logits(model), dense) < 1


@pytest.mark.parametrize("name", ["one head for each", "groups of heads", "biases on both sides"])
def test_heads_and_channels_of_their_values_go_together(name: str) -> None:
    model = random_decoder(CONFIGS[name], 0.3)
    state = run_passes(decoder_state(model), TURN)
    coupling, dense = state.subject.coupling, own_copy(model)
    assert coupling is not None
    held, generator = held_values(model), np.random.default_rng(0)
    chosen = [
        group for group in coupling.groups.values()
        if group.kind in (Kind.HEADS, Kind.KV_HEADS)
        or (group.kind is Kind.HEAD_DIM and {tensor.rpartition(".")[0] for tensor in group.tensors} <= held.keys())
    ]  # fmt: skip
    assert len(chosen) == 4
    cut(state, coupling, {group.name: random_units(group, generator) for group in chosen})
    assert state.ledger.plan is not None
    assert relative_difference(logits(model), logits(masked(dense, state.ledger.plan))) < TOLERANCE


def test_a_score_of_heads_leaves_that_of_their_values_alone() -> None:
    state = run_passes(decoder_state(random_decoder(CONFIGS["one head for each"], 0.3)), TURN)
    assert state.subject.coupling is not None
    step = Obs(by="global", target="params:0.8", values=True, samples=4, length=12, seed=0)
    chosen, _ = chosen_groups(
        state.subject.coupling.groups.values(), scope_of(step, 0.2, state.subject.coupling, state)
    )
    kinds = {kind: [group for group in chosen if group.kind is kind] for kind in (Kind.HEADS, Kind.HEAD_DIM)}
    together = step.scores(chosen, state)
    for groups in kinds.values():
        assert len(groups) == 2
        alone = step.scores(groups, state)
        for group in groups:
            np.testing.assert_allclose(together[group.name], alone[group.name], rtol=1e-9)
    uniform = Obs(values=True, samples=4, length=12)
    only, _ = chosen_groups(
        state.subject.coupling.groups.values(), scope_of(uniform, 0.2, state.subject.coupling, state)
    )
    assert {group.kind for group in only} == {Kind.HEAD_DIM, Kind.WIDTH}


@pytest.mark.parametrize("seed", range(3))
def test_the_first_directions_keep_the_most(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(200, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, generator=generator, dtype=torch.float64
    )
    weight = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    moments, metric = given.T @ given, weight.T @ weight
    turn = basis(moments, metric)
    assert torch.allclose(turn @ turn.T, torch.eye(6, dtype=torch.float64), atol=1e-12)
    best = torch.linalg.svdvals(given @ weight.T)
    for count in range(1, 6):
        kept = given @ turn[:count].T
        fitted = kept @ torch.linalg.lstsq(kept, given @ weight.T).solution
        lost = (given @ weight.T - fitted).square().sum()
        least = best[count:].square().sum()  # Eckart and Young: no other functions lose less
        assert least * (1 - 1e-9) <= lost <= least * 1.01


def test_a_head_that_gives_nothing_stays() -> None:
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    assert basis(nothing, torch.eye(4, dtype=torch.float64)).equal(torch.eye(4, dtype=torch.float64))


def test_values_may_be_turned_twice() -> None:
    model = random_decoder(CONFIGS["groups of heads"], 0.3)
    before = logits(model)
    state = run_passes(decoder_state(model), f"{TURN},{TURN.replace('seed=0', 'seed=1')}")
    assert relative_difference(logits(model), before) < TOLERANCE
    run_passes(state, "magnitude{ratio=0.3,values=true,ffn=false,layers=0:1}")
    assert {path.split(".")[2] for path in narrow_values(model)} == {"0"}
    narrow = logits(model)
    run_passes(state, f"{TURN},magnitude{{ratio=0.3,values=true,ffn=false,layers=1:2}}")
    assert len(narrow_values(model)) == 4
    assert not torch.allclose(logits(model), narrow)


def test_values_in_one_weight_with_queries_stay_and_heads_go() -> None:
    model = gpt2()
    state = run_passes(decoder_state(model), TURN)
    assert "no attention has values that can be turned" in state.ledger.report["turn"]["remarks"][0]
    state = run_passes(state, "magnitude{ratio=0.5,values=true}")
    assert state.ledger.plan is not None
    assert any("heads" in group for group in state.ledger.plan.keep)


def test_values_that_were_not_turned_are_not_cut() -> None:
    with pytest.raises(RequestError, match="values=true has no effect") as caught:
        run_passes(decoder_state(random_decoder(CONFIGS["groups of heads"], 0.3)), "magnitude{values=true}")
    assert caught.value.hint == "put turn before this pass"


class Gated(nn.Module):
    """Attention over ``x [b, l, 8]`` with two heads, and something between its values and what reads them."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate, self.o = (nn.Linear(8, 8) for _ in range(5))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.between == "norm":
            v = nn.functional.rms_norm(v, (4,))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        if self.between == "scale":
            mixed = 2 * mixed
        if self.between == "gate of heads":
            mixed = mixed * self.gate(x)[..., :2].transpose(1, 2).unsqueeze(-1)
        mixed = mixed.transpose(1, 2).flatten(-2)
        if self.between == "gate":
            mixed = mixed * self.gate(x).sigmoid()
        if self.between == "curve":
            mixed = mixed.tanh()
        if self.between == "twice":
            return self.o(mixed) + mixed
        return self.o(mixed)


@pytest.mark.parametrize(
    ("between", "turns"),
    [
        ("", True), ("scale", True), ("gate of heads", True), ("gate", False), ("curve", False), ("norm", False),
        ("twice", False),
    ],
)  # fmt: skip
def test_only_what_is_linear_in_the_values_turns(between: str, turns: bool) -> None:
    torch.manual_seed(0)
    model, x = Gated(between).double().eval(), torch.randn(3, 5, 8, dtype=torch.float64)
    state = module_state(model, x)
    assert state.subject.coupling is not None
    assert bool(head_values(state.subject.coupling, model)) == turns


def test_a_model_that_computes_something_else_afterwards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned_values, "basis", lambda moments, _: 2 * torch.eye(len(moments), dtype=moments.dtype))
    with pytest.raises(FxpruneError, match="turn: the turned model computes something else"):
        run_passes(decoder_state(random_decoder(CONFIGS["groups of heads"], 0.3)), TURN)


def test_a_decision_is_carried_out_again() -> None:
    config = CONFIGS["groups of heads"]
    text = f"{TURN},magnitude{{ratio=0.3,values=true}}"
    first = run_passes(decoder_state(random_decoder(config, 0.3)), text)
    (held,) = [one for one in first.ledger.decisions if isinstance(one, ValuesHeld)]
    assert ValuesHeld.from_json(held.to_json()) == held
    again = decoder_state(random_decoder(config, 0.3))
    for decision in first.ledger.decisions:
        decision.redo(again)
    assert narrow_values(again.subject.model) == narrow_values(first.subject.model)
    with pytest.raises(FxpruneError, match="no module nowhere"):
        ValuesHeld({"nowhere": ("makes", 4)}).redo(again)
