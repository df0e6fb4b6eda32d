"""drop{sub_blocks=N}: the model without parts of its layers is the original whose parts add zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cosine_similarity

from fxprune.ir import FxpruneError, Plan
from fxprune.passes.couple.coupling import couple
from fxprune.passes.drop.drop import Drop
from fxprune.passes.drop.greedy import gauge_of
from fxprune.passes.drop.sub_block_scores import choose, sub_block_influence
from fxprune.passes.drop.sub_blocks import SubBlock, find_sub_blocks, taken_out
from fxprune.passes.model.blocks import find_blocks
from fxprune.passes.model.measure import perplexity
from fxprune.passes.score.random import Random
from fxprune.passes.state import State
from fxprune.runtime.absence import absences
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import trace_causal_lm

from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...states import decoder_state

VOCAB = 47
TEXT = RandomTokens(VOCAB)
IDS = special_tokens(VOCAB)
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, **IDS,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, **IDS),
    "two norms, one sum": transformers.GPTNeoXConfig(**SMALL),
    "one norm for both": transformers.FalconConfig(**SMALL, new_decoder_architecture=False, multi_query=True),
    "no module for the mlp": transformers.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=24, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, **IDS,
    ),
    "norms after": transformers.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=3),
    "scaled terms": transformers.GraniteConfig(**SMALL, residual_multiplier=0.3),
    "experts": transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2),
}  # fmt: skip
ATTENDS = {"gpt2": "attn", "two norms, one sum": "attention", "one norm for both": "self_attention"}
GOES: dict[str, tuple[set[str], set[str]]] = {
    "llama": ({"input_layernorm", "self_attn"}, {"post_attention_layernorm", "mlp"}),
    "gpt2": ({"ln_1", "attn"}, {"ln_2", "mlp"}),
    "two norms, one sum": ({"input_layernorm", "attention"}, {"post_attention_layernorm", "mlp"}),
    "one norm for both": ({"self_attention"}, {"mlp"}),
    "no module for the mlp": ({"self_attn_layer_norm", "self_attn"}, {"final_layer_norm", "fc1", "fc2"}),
    "norms after": (
        {"input_layernorm", "self_attn", "post_attention_layernorm"},
        {"pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"},
    ),
    "scaled terms": ({"input_layernorm", "self_attn"}, {"post_attention_layernorm", "mlp"}),
    "experts": ({"input_layernorm", "self_attn"}, {"post_attention_layernorm", "mlp"}),
}
"""Children of a layer that go with its attention, and with its MLP."""


def make(name: str, dtype: torch.dtype = torch.float64) -> Any:
    model = random_decoder(MODELS[name], 0.2, dtype)
    if name == "experts":
        model.set_experts_implementation("batched_mm")  # the others know no float64
    return model


def parts_of(model: Any) -> tuple[SubBlock, ...]:
    return find_sub_blocks(BlockRunner(model), find_blocks(model), trace_causal_lm(model).graph, TEXT.windows(7, 1))


def zeroed(model: Any, parts: list[SubBlock], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the original while the outputs of some parts are zeros."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    handles = [model.get_submodule(part.path).register_forward_hook(hook) for part in parts]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.fixture(scope="module", params=MODELS)
def found(request: pytest.FixtureRequest) -> tuple[str, Any, tuple[SubBlock, ...]]:
    """The name, the model and its sub-blocks; tests leave the model as it was."""
    model = make(request.param)
    return request.param, model, parts_of(model)


def test_every_layer_has_two(found: tuple[str, Any, tuple[SubBlock, ...]]) -> None:
    name, model, parts = found
    assert sorted((part.layer, part.kind) for part in parts) == [(i, k) for i in range(3) for k in ("attention", "mlp")]
    path = find_blocks(model).path
    for part in parts:
        expected = GOES[name][part.kind == "mlp"]
        assert set(part.members) == {f"{path}.{part.layer}.{child}" for child in expected}


def test_blocks_that_do_not_run_on_text_are_no_layers() -> None:
    model = make("llama")
    model.tower = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(9))
    assert find_blocks(model).path == "tower"
    assert find_blocks(model, trace_causal_lm(model).graph).path == "model.layers"


def test_a_norm_that_the_layer_reads_a_weight_of_stays() -> None:
    config = transformers.MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, **IDS)
    parts = parts_of(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert [part.members for part in parts] == [(f"backbone.layers.{i}.mixer",) for i in range(2)]


@pytest.mark.parametrize("which", ["attention", "mlp", "first layer"])
def test_dropping_equals_zeroing(found: tuple[str, Any, tuple[SubBlock, ...]], which: str) -> None:
    _, model, parts = found
    gone = [part for part in parts if (part.layer == 0 if which == "first layer" else part.kind == which)]
    ids = TEXT.windows(9, 2)
    expected = zeroed(model, gone, ids)
    with taken_out(model, gone):
        assert set(absences(model)) == {member for part in gone for member in part.members}
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert not absences(model)


def test_the_cache_counts_positions_without_the_first_attention(found: tuple[str, Any, tuple[SubBlock, ...]]) -> None:
    _, model, parts = found
    gone = [part for part in parts if part.layer == 0 or part is parts[-2]]
    ids = TEXT.windows(6, 2)
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    with taken_out(model, gone), torch.no_grad():
        expected = model.generate(ids, use_cache=False, **settings)
        assert torch.equal(model.generate(ids, **settings), expected)
        beams = model.generate(ids, num_beams=2, use_cache=False, **settings)
        assert torch.equal(model.generate(ids, num_beams=2, **settings), beams)
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        last = model(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True).logits[:, -1]
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
        assert (last - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_influence_is_one_minus_the_mean_cosine_of_the_stream_with_and_without(
    found: tuple[str, Any, tuple[SubBlock, ...]],
) -> None:
    name, model, parts = found
    tokens = TEXT.windows(6, 3)
    blocks = find_blocks(model)
    held: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            held[path] = (output[0] if isinstance(output, tuple) else output).clone()  # some are added to in place
            held[path + " in"] = args[0] if args else kwargs["hidden_states"]

        return hook

    places = [part.path for part in parts] + [f"{blocks.path}.{i}" for i in range(3)]
    handles = [model.get_submodule(path).register_forward_hook(keep(path), with_kwargs=True) for path in places]
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    scale = getattr(model.config, "residual_multiplier", 1.0)
    expected = []
    for part in parts:
        layer = f"{blocks.path}.{part.layer}"
        term = scale * held[part.path].view_as(held[layer])
        after = held[layer]
        if part.kind == "attention" and part.adds == 1:
            after = held[layer + " in"] + term
        expected.append(1 - cosine_similarity(after - term, after, dim=-1).mean().item())
    assert {part.adds for part in parts} == ({2} if name in ("two norms, one sum", "one norm for both") else {1})
    assert np.allclose(sub_block_influence(BlockRunner(model), parts, tokens), expected, rtol=0, atol=1e-12)


def test_perplexity_takes_what_costs_least_one_by_one() -> None:
    model, tokens = make("llama"), TEXT.windows(8, 2)
    parts = parts_of(model)

    def cost(gone: list[int]) -> float:
        with taken_out(model, [parts[i] for i in gone]):
            return perplexity(model, tokens).value

    first = min(range(6), key=lambda i: cost([i]))
    second = min((i for i in range(6) if i != first), key=lambda i: cost([first, i]))
    gone, costs = choose(gauge_of("perplexity", BlockRunner(model), tokens), BlockRunner(model), parts, tokens, 2)
    assert gone == [first, second]
    assert costs == [cost([first]), cost([first, second])]


def test_a_part_that_does_nothing_goes_first() -> None:
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    state = decoder_state(model)
    before = sum(p.numel() for p in model.parameters())
    inner = sum(p.numel() for p in model.model.layers[1].self_attn.parameters())
    Drop(sub_blocks=1, samples=2, length=8).run(state)
    (gone,) = state.ledger.report["drop"]["sub_blocks"]
    assert gone["module"] == "model.layers.1.self_attn"
    assert gone["with"] == ["model.layers.1.input_layernorm", "model.layers.1.self_attn"]
    scores = state.ledger.report["drop"]["sub_block_scores"]["scores"]
    assert scores["model.layers.1.self_attn"] == pytest.approx(0, abs=1e-12)
    assert sum(p.numel() for p in model.parameters()) == before - inner - 32
    assert not any("layers.1.self_attn" in p.name for p in state.subject.graph.parameters)


@pytest.mark.parametrize("by", ["influence", "perplexity"])
@pytest.mark.parametrize("of", ["attention", "mlp"])
def test_only_one_kind_goes(by: str, of: str) -> None:
    state = decoder_state(make("gpt2"))
    Drop(sub_blocks=2, by=by, of=of, samples=2, length=8).run(state)
    assert [part["kind"] for part in state.ledger.report["drop"]["sub_blocks"]] == [of, of]
    assert len(state.ledger.report["drop"]["sub_block_scores"]["scores"]) == (3 if by == "influence" else 2)


def test_layers_go_before_sub_blocks() -> None:
    state = decoder_state(make("llama"))
    Drop(layers=1, sub_blocks=2, samples=2, length=8).run(state)
    assert len(state.subject.model.model.layers) == 2  # type: ignore[union-attr,arg-type]
    assert len(state.ledger.report["drop"]["dropped"]) == 1
    assert len(state.ledger.report["drop"]["sub_blocks"]) == 2


def test_widths_then_sub_blocks_then_widths() -> None:
    state = decoder_state(make("llama"))
    Random(ratio=0.5, heads="off").run(state)
    Drop(sub_blocks=1, of="mlp", samples=2, length=8).run(state)
    Drop(sub_blocks=1, of="attention", samples=2, length=8).run(state)
    gone = [path for part in state.ledger.report["drop"]["sub_blocks"] for path in part["with"]]
    assert len(gone) == 4
    assert isinstance(state.ledger.plan, Plan)
    assert state.ledger.plan.slices
    assert not [name for name, _ in state.ledger.plan.slices if name.rpartition(".")[0].startswith(tuple(gone))]
    state.subject.coupling = couple(state.subject.graph)
    Random(ratio=0.5, heads="off", channels=True).run(state)
    shapes = [tuple(p.shape) for name, p in state.subject.model.named_parameters() if "up_proj" in name]
    assert shapes.count((6, 16)) == 2


def without_parts() -> State:
    state = decoder_state(make("llama"))
    Drop(sub_blocks=1, samples=1, length=4).run(state)
    return state


def bloom() -> Any:
    config = transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **IDS)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def broken() -> Any:
    model = make("llama")
    model.model.layers[1].mlp.up_proj.weight.data.fill_(float("nan"))
    return model


def unseen(model: Any) -> None:
    part = parts_of(model)[0]
    stranger = SubBlock(0, "lm_head", ("lm_head",), "mlp", 1, part.absences)
    sub_block_influence(BlockRunner(model), [stranger], TEXT.windows(4, 1))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Drop(sub_blocks=-1).check(), "drop: sub_blocks=-1 is below 0"),
        (lambda: Drop(of="mlp").check(), "of=mlp has no effect without sub_blocks"),
        (
            lambda: Drop(sub_blocks=6, samples=1, length=4).run(decoder_state(make("llama"))),
            "cannot remove 6 of 6 sub-blocks",
        ),
        (
            lambda: Drop(sub_blocks=4, of="mlp", samples=1, length=4).run(decoder_state(make("llama"))),
            "cannot remove 4 of 3 mlp sub-blocks",
        ),
        (lambda: Drop(layers=1, samples=1, length=4).run(without_parts()), "layers cannot be removed after sub-blocks"),
        (lambda: Drop(sub_blocks=1, samples=1, length=4).run(decoder_state(bloom())), "the layers of BloomFor"),
        (
            lambda: Drop(sub_blocks=1, samples=1, length=4).run(decoder_state(broken())),
            "block influences are not finite",
        ),
        (lambda: unseen(make("llama")), "the addition of lm_head to the residual stream did not run"),
    ],
)
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        attempt()
    assert caught.value.hint
