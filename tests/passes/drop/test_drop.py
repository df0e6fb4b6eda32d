"""drop: the shallower model is the original with blocks that pass on what they get."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fxprune.ir import FxpruneError, Plan, RequestError
from fxprune.passes.couple.coupling import couple
from fxprune.passes.drop.choice import _pass_on, block_influence
from fxprune.passes.drop.drop import Drop
from fxprune.passes.model.blocks import find_blocks, keep_blocks
from fxprune.passes.model.measure import perplexity
from fxprune.passes.score.random import Random
from fxprune.passes.state import NoHost, State
from fxprune.runtime.streaming.block_runner import BlockRunner

from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...states import decoder_state

VOCAB = 47
TEXT = RandomTokens(VOCAB)
IDS = special_tokens(VOCAB)
MODELS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, **IDS
    ),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=64, **IDS),
    "layer types": transformers.Gemma2Config(
        hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, sliding_window=3, **IDS,
    ),
}  # fmt: skip


def make(name: str) -> Any:
    return random_decoder(copy.deepcopy(MODELS[name]), 0.2)  # a test changes the configuration


def without(model: Any, gone: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the original while some blocks pass on what they get."""
    blocks = find_blocks(model).modules
    handles = [blocks[i].register_forward_hook(_pass_on, with_kwargs=True) for i in gone]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gone", [[0], [1, 2], [0, 2, 3]])
def test_dropping_equals_passing_on(name: str, gone: list[int]) -> None:
    model = make(name)
    before = dict(model.state_dict())
    ids = TEXT.windows(9, 2)
    expected = without(model, gone, ids)
    names = keep_blocks(model, find_blocks(model), [i for i in range(4) if i not in gone])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
        cached = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(cached, model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False))
    assert all(torch.equal(tensor, before[names[now]]) for now, tensor in model.state_dict().items())
    rebuilt = type(model)(model.config)
    assert {n: t.shape for n, t in rebuilt.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_influence_is_one_minus_the_mean_cosine() -> None:
    model = make("llama")
    tokens = TEXT.windows(6, 3)
    with torch.no_grad():
        states = model.model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        last: list[torch.Tensor] = []
        handle = model.model.layers[3].register_forward_hook(lambda _m, _a, output: last.append(output))
        model(input_ids=tokens, use_cache=False)
        handle.remove()
    streams = [*states[:4], last[0]]
    expected = [
        1 - torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item() for a, b in itertools.pairwise(streams)
    ]
    assert np.allclose(block_influence(BlockRunner(model), find_blocks(model), tokens), expected, rtol=0, atol=1e-12)


def test_perplexity_drops_what_costs_least() -> None:
    tokens = TEXT.windows(8, 2)
    costs = []
    for index in range(4):
        shallow = make("llama")
        keep_blocks(shallow, find_blocks(shallow), [i for i in range(4) if i != index])
        costs.append(perplexity(shallow, tokens).value)
    state = decoder_state(make("llama"))
    Drop(layers=1, by="perplexity", samples=2, length=8).run(state)
    assert state.ledger.report["drop"]["dropped"] == [int(np.argmin(costs))]
    assert state.ledger.report["drop"]["scores"] == pytest.approx([min(costs)], rel=1e-12)


def test_a_block_that_does_nothing_has_no_influence() -> None:
    model = make("llama")
    idle = model.model.layers[2]
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    state = decoder_state(model)
    Drop(layers=1, samples=2, length=8).run(state)
    assert state.ledger.report["drop"]["dropped"] == [2]
    assert len(model.model.layers) == 3
    assert state.ledger.renamed["model.layers.2.mlp.up_proj.weight"] == "model.layers.3.mlp.up_proj.weight"


def test_widths_then_depth_then_widths() -> None:
    state = decoder_state(make("llama"))
    Random(ratio=0.5, heads="off").run(state)
    Drop(layers=2, samples=2, length=8).run(state)
    assert isinstance(state.ledger.plan, Plan)
    assert {name.split(".")[2] for name, _ in state.ledger.plan.slices} == {"0", "1"}
    state.subject.coupling = couple(state.subject.graph)
    Random(ratio=0.5, heads="off").run(state)
    assert state.subject.model.model.layers[1].mlp.up_proj.weight.shape == (6, 32)  # type: ignore[union-attr,index]


def test_dropping_nothing_changes_nothing() -> None:
    state = decoder_state(make("llama"))
    graph = state.subject.graph
    Drop(layers=0, samples=1, length=4).run(state)
    assert state.subject.graph is graph


def broken() -> State:
    model = make("llama")
    model.model.layers[1].mlp.up_proj.weight.data.fill_(float("nan"))
    return decoder_state(model)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Drop(layers=4, samples=1, length=4).run(decoder_state(make("llama"))), "4 of 4 layers leave none"),
        (lambda: Drop(layers=-1).check(), "drop: layers=-1 is below 0"),
        (lambda: Drop(length=1).check(), "drop: length=1 is below 2"),
        (lambda: Drop(samples=1, length=4).run(broken()), "block influences are not finite"),
        (lambda: find_blocks(torch.nn.Linear(2, 2)), "Linear has no sequence of layers"),
    ],
)
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_drop_without_text_asks_for_it() -> None:
    state = decoder_state(make("llama"), calibration=None)
    with pytest.raises(RequestError, match="needs calibration text"):
        Drop().run(state)


def test_a_depth_that_no_number_says() -> None:
    model = make("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(FxpruneError, match="no field of LlamaConfig holds the number of layers"):
        keep_blocks(model, find_blocks(model), [0, 1])


def test_a_host_that_cannot_trace_lets_no_layer_go() -> None:
    state = decoder_state(make("llama"))
    state.host = NoHost()
    with pytest.raises(FxpruneError, match="only widths of a LlamaForCausalLM can be pruned here"):
        Drop(samples=1, length=4).run(state)


def accepted(model: Any, gone: list[int], ids: torch.Tensor) -> float:
    """By the definition: the mean over positions of the sum over tokens of the smaller probability."""
    p, q = (without(model, which, ids).float().softmax(-1) for which in ([], gone))
    return float(torch.minimum(p, q).sum(-1).mean())


def test_acceptance_keeps_the_layers_whose_draft_the_model_accepts() -> None:
    model, ids = make("llama"), TEXT.windows(8, 3)
    alone = {i: accepted(model, [i], ids) for i in range(4)}
    first = max(alone, key=lambda i: alone[i])
    pairs = {i: accepted(model, [first, i], ids) for i in range(4) if i != first}
    second = max(pairs, key=lambda i: pairs[i])
    state = decoder_state(model)
    Drop(layers=2, by="acceptance", samples=3, length=8).run(state)
    report = state.ledger.report["drop"]
    assert report["order"] == [first, second]
    assert report["scores"] == pytest.approx([alone[first], pairs[second]], rel=1e-5)


def test_acceptance_of_sub_blocks_is_by_the_model_before_its_layers_went() -> None:
    model, ids = make("llama"), TEXT.windows(8, 3)
    dense = without(model, [], ids).float().softmax(-1)
    state = decoder_state(model)
    Drop(layers=1, sub_blocks=1, by="acceptance", samples=3, length=8).run(state)
    report = state.ledger.report["drop"]["sub_block_scores"]
    draft = without(model, [], ids).float().softmax(-1)
    assert report["by"] == "acceptance"
    assert list(report["scores"].values()) == pytest.approx(
        [float(torch.minimum(dense, draft).sum(-1).mean())], rel=1e-5
    )


def test_an_acceptance_that_is_not_finite_is_a_failure() -> None:
    model = make("llama")
    state = decoder_state(model)
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FxpruneError, match="the acceptance is nan"):
        Drop(by="acceptance", samples=2, length=8).run(state)
