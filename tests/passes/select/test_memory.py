"""Budgets of memory and of active parameters: what is counted is what the pruned model holds when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fxprune.ir import FxpruneError, RequestError
from fxprune.ir.cache import CacheGraph
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.score.random import Random
from fxprune.passes.score.wanda import Wanda
from fxprune.passes.select.costs import itemsize
from fxprune.passes.select.target import CACHE_DTYPES, Target
from fxprune.passes.state import State
from fxprune.runtime.model.held_values import narrow_values
from fxprune.runtime.tensors import twin
from fxprune.tracer.cache import trace_cache

from ...decoders import random_decoder, special_tokens
from ...retracing import Retracing
from ...states import decoder_state, run_passes

CONTEXT, BATCH = 21, 3
WINDOW = 6
GROUPED: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8, "head_dim": 4,
    "num_key_value_heads": 4, **special_tokens(61),
}  # fmt: skip
LATENT: dict[str, Any] = {
    **GROUPED, "num_key_value_heads": 8, "q_lora_rank": None, "kv_lora_rank": 12, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6, "v_head_dim": 10, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 20, "first_k_dense_replace": 1, "n_shared_experts": 1, "head_dim": 4,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=8, n_positions=64, **special_tokens(61)),
    "sliding": lambda: transformers.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "some sliding": lambda: transformers.Gemma2Config(**GROUPED, sliding_window=WINDOW, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"]),
    "fused": lambda: transformers.Phi3Config(**{**GROUPED, "num_key_value_heads": 8}),
    "latent": lambda: transformers.DeepseekV3Config(**LATENT),
}  # fmt: skip
MIXTURES: dict[str, Any] = {
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=5, num_experts_per_tok=2),
    "qwen3": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=40, mlp_only_layers=[1]),
    "gpt-oss": lambda: transformers.GptOssConfig(**GROUPED, num_local_experts=5, num_experts_per_tok=2),
    "deepseek": lambda: transformers.DeepseekV3Config(**LATENT),
}  # fmt: skip


class Stored:
    """The model's weights in their own dtype, and its cache."""

    has_cache = True
    cache_itemsize = 4

    def __init__(self, dense: nn.Module) -> None:
        self.dense = twin(dense, "meta")

    def itemsize(self, name: str, dtype: str) -> int:
        del name
        return itemsize(dtype)

    def cache(self, context: int, model: nn.Module | None) -> CacheGraph:
        return trace_cache(twin(self.dense if model is None else model, "meta"), context)


def state_of(kind: str) -> State:
    model = random_decoder({**CONFIGS, **MIXTURES}[kind](), 0.2, torch.float32)
    host = Retracing()
    host.storage = Stored(model)
    state = decoder_state(model, host=host)
    state.before.graph = state.subject.graph
    return state


def held(model: Any) -> tuple[int, int]:
    """Bytes of the parameters, and of a cache that was filled."""
    ids = torch.zeros(BATCH, CONTEXT, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(p.nbytes for p in model.parameters()), sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(("kind", "by"), [*((kind, "global") for kind in CONFIGS), ("llama", "uniform")])
def test_the_budget_is_what_the_pruned_model_holds(kind: str, by: str) -> None:
    state = state_of(kind)
    before = held(state.subject.model)
    step = Magnitude(target=f"memory:0.7@{CONTEXT}x{BATCH}", by=by, tolerance=0.02)
    run_passes(state, step)
    weights, cache = held(state.subject.model)
    found = state.ledger.report["magnitude"]["allocation"]
    buffers = found["reached"] - found["cache"] - weights
    assert found["cache"] == cache < before[1]
    assert 0 <= buffers <= 64  # tables of rotary frequencies
    assert abs(found["budget"] - 0.7 * (sum(before) + buffers)) <= 1
    assert abs(found["reached"] / found["budget"] - 1) <= 0.02


@pytest.mark.parametrize("heads", ["auto", "off"])
def test_channels_of_values_leave_the_cache_as_it_is(heads: str) -> None:
    state = state_of("llama")
    run_passes(
        state,
        "turn{samples=4,length=12,seed=0}",
        Magnitude(target=f"memory:0.8@{CONTEXT}x{BATCH}", by="global", values=True, heads=heads, tolerance=0.02),
    )
    assert narrow_values(state.subject.model)
    weights, cache = held(state.subject.model)
    found = state.ledger.report["magnitude"]["allocation"]
    assert found["cache"] == cache
    assert 0 <= found["reached"] - cache - weights <= 64


def test_after_layers_went_the_share_is_of_the_model_before_and_the_cache_of_the_one_after() -> None:
    state = state_of("some sliding")
    before = held(state.subject.model)
    target = f"memory:0.5@{CONTEXT}x{BATCH}"
    run_passes(state, "drop{layers=1,samples=2,length=8}", Magnitude(target=target, by="global", tolerance=0.02))
    found = state.ledger.report["magnitude"]["allocation"]
    weights, cache = held(state.subject.model)
    assert found["cache"] == cache
    assert 0 <= found["reached"] - cache - weights <= 64
    assert abs(found["budget"] - 0.5 * sum(before)) <= 64


def test_an_attention_that_went_keeps_one_number_per_position() -> None:
    state = state_of("llama")
    run_passes(
        state, "drop{sub_blocks=1,of=attention,samples=2,length=8}", Random(target=f"memory:0.6@{CONTEXT}x{BATCH}")
    )
    assert state.ledger.report["random"]["allocation"]["cache"] == held(state.subject.model)[1]


def test_a_search_meets_it_too() -> None:
    state = state_of("llama")
    target = f"memory:0.7@{CONTEXT}x{BATCH}"
    run_passes(state, Wanda(target=target, by="search", samples=2, length=8, moves=4))
    found = state.ledger.report["wanda"]["allocation"]
    assert found["reached"] == pytest.approx(sum(held(state.subject.model)), abs=64)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_the_dtype_of_the_cache_counts(dtype: str, size: int) -> None:
    state = state_of("llama")
    step = Random(target=f"memory:0.7@{CONTEXT}x{BATCH}:{dtype}", tolerance=0.03)
    run_passes(state, step)
    assert state.ledger.report["random"]["allocation"]["cache"] == held(state.subject.model)[1] // 4 * size


def test_without_a_context_it_is_the_weights() -> None:
    state = state_of("llama")
    run_passes(state, Random(target="memory:60kB"))
    found = state.ledger.report["random"]["allocation"]
    assert found["reached"] - sum(p.nbytes for p in state.subject.model.parameters()) in range(64)
    assert found["budget"] == 60_000
    assert "cache" not in found


def active(model: Any, top: int, experts: int) -> int:
    """By name, in this test alone: of what holds one entry per expert, as many as a token is given."""
    shares = {True: top, False: experts}
    return sum(
        p.numel() * shares[".experts." in name and p.shape[0] == experts] // experts
        for name, p in model.named_parameters()
    )


@pytest.mark.parametrize("kind", MIXTURES)
def test_active_parameters_are_those_of_the_experts_that_a_token_is_given(kind: str) -> None:
    state = state_of(kind)
    experts = 6 if kind == "deepseek" else 5
    before = active(state.subject.model, 2, experts)
    assert before < 0.9 * sum(p.numel() for p in state.subject.model.parameters())
    run_passes(state, Magnitude(target="active:0.75", by="global", tolerance=0.05))
    found = state.ledger.report["magnitude"]["allocation"]
    assert found["budget"] == round(0.75 * before)
    assert found["reached"] == active(state.subject.model, 2, experts)
    assert abs(found["reached"] / found["budget"] - 1) <= 0.05


def test_fewer_experts_are_not_fewer_active_parameters_but_a_smaller_router() -> None:
    state = state_of("mixtral")
    run_passes(
        state, Magnitude(ratio=0.4, experts=True, heads="off", ffn=False), Random(target="active:0.75", tolerance=0.05)
    )
    assert state.subject.model.config.num_hidden_layers == 3
    found = state.ledger.report["random"]["allocation"]["reached"]
    assert found == active(state.subject.model, 2, 3)


def refused(kind: str, target: str, **options: Any) -> None:
    run_passes(state_of(kind), Random(target=target, **options))


def refusals() -> Iterator[Any]:
    place = f"@{CONTEXT}x{BATCH}"
    yield lambda: Target.parse("macs=2e9"), "macs takes a share only"
    yield lambda: Target.parse("memory=6XB@8192x4"), "'6XB' is no amount of memory"
    yield lambda: Target.parse("memory=6GB@8192"), "no context and batch after the @: '8192'"
    yield lambda: Target.parse("memory=6GB@0x4"), "no context and batch after the @: '0x4'"
    yield lambda: Target.parse("memory=6GB@8192x4:int3"), "no cache is kept in 'int3'"
    yield lambda: Target.parse("memory=-1@8192x4"), "'-1' is no amount of memory"
    yield lambda: Target.parse("memory=1"), "is one byte"
    yield lambda: Target.parse("params=0.9,0.8"), "holds several sizes"
    yield (
        lambda: refused("llama", f"memory:5kB{place}"),
        (
            r"is 5.0 kB, and with the fewest units that each group can keep [\d.]+ kB are left: [\d.]+ kB of weights "
            r"and [\d.]+ kB of key-value cache"
        ),
    )
    yield lambda: refused("llama", f"memory:1TB{place}"), "nothing would be removed"
    yield lambda: refused("llama", "active:0.8"), "this model has no experts"


@pytest.mark.parametrize(("attempt", "message"), list(refusals()))
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_a_cache_is_that_of_a_language_model() -> None:
    model = random_decoder(CONFIGS["llama"](), 0.2, torch.float32)
    with pytest.raises(RequestError, match="only a causal language model of transformers has a key-value cache"):
        run_passes(decoder_state(model), Random(target="memory:0.8@8x2"))


def test_a_model_that_returns_no_cache_cannot_be_counted() -> None:
    model = random_decoder(CONFIGS["llama"](), 0.2, torch.float32)
    inner = model.model.forward
    model.model.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "use_cache": False})
    with pytest.raises(FxpruneError, match="returns no key-value cache whose tensors can be counted"):
        trace_cache(model, 8)


def test_targets_are_written_as_they_are_read() -> None:
    for text in ("memory=6000000000@8192x4", "memory=0.8@16x1:bfloat16", "params=0.8", "active=3e+09"):
        assert str(Target.parse(text)) == text
    assert Target.parse("memory:1.5GiB").value == 1.5 * 2**30


def test_dtypes_of_a_cache_are_as_torch_names_and_sizes_them() -> None:
    assert {name: getattr(torch, name).itemsize for name in CACHE_DTYPES} == CACHE_DTYPES
