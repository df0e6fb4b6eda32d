"""Counts that a runtime needs: of widths, heads and experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from fxprune.ir import RequestError
from fxprune.ir.groups import Kind
from fxprune.passes.pipeline import parse_pipeline, print_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.score.random import Random
from fxprune.passes.select.alignment import aligned
from fxprune.passes.select.runtimes import RUNTIMES

from ...decoders import random_decoder, special_tokens
from ...states import decoder_state, run_passes

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, **special_tokens(37)}


def llama(**sizes: Any) -> Any:
    given = {"intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
    return random_decoder(transformers.LlamaConfig(**SIZES, **{**given, **sizes}), 0.3, torch.float32)


def mixtral(experts: int) -> Any:
    model = random_decoder(
        transformers.MixtralConfig(
            **SIZES, intermediate_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            num_local_experts=experts, num_experts_per_tok=2,
        ), 0.3, torch.float32,
    )  # fmt: skip
    model.set_experts_implementation("batched_mm")
    return model


def kept(model: Any, text: str) -> dict[str, int]:
    """What stays, by kind, and what was said."""
    state = run_passes(decoder_state(model), text)
    assert state.ledger.plan is not None
    return {name.rpartition(":")[2]: len(units) for name, units in state.ledger.plan.keep.items()}


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ("", {"heads": 6, "width": 528}),
        ("multiple_of=auto", {"heads": 6, "width": 544}),
        ("runtime=gguf-q8", {"heads": 6, "width": 544}),
        ("runtime=gguf-k", {"heads": 8, "width": 704}),
        ("runtime=torchao-int4,multiple_of=auto", {"heads": 6, "width": 544}),
        ("runtime=tensor-cores", {"heads": 6, "width": 576}),
        ("runtime=tp4", {"heads": 8, "width": 640}),
        ("runtime=gguf-q8,multiple_of=64", {"heads": 6, "width": 576}),
    ],
)
def test_widths_and_heads(options: str, counts: dict[str, int]) -> None:
    """8 heads of 32 and a width of 704; K-quants want rows of 256, and both 704 and three quarters of 8 heads have
    none that is smaller and large enough."""
    text = f"random{{ratio=0.25{',' if options else ''}{options}}}"
    if counts == {"heads": 8, "width": 704}:
        with pytest.raises(RequestError, match="nothing to remove"):
            kept(llama(), text)
        return
    found = kept(llama(), text)
    assert {**{"heads": 8}, **found} == counts


@pytest.mark.parametrize(
    ("experts", "ratio", "count"), [(8, "0.5", 4), (12, "0.3", None), (12, "0.4", 8), (12, "0.2", None), (6, "0.4", 4)]
)
def test_experts_that_router_kernels_are_built_for(experts: int, ratio: str, count: int | None) -> None:
    text = f"random{{ratio={ratio},heads=off,ffn=false,experts=true,runtime=vllm}}"
    if count is None:
        with pytest.raises(RequestError, match="nothing to remove"):
            kept(mixtral(experts), text)
    else:
        assert kept(mixtral(experts), text) == {"experts": count}
        assert count in RUNTIMES["vllm"].experts


def test_a_budget_keeps_to_them_too() -> None:
    found = kept(llama(), "random{target=params:0.75,by=global,runtime=gguf-q8,tolerance=0.05}")
    assert found["width"] % 32 == 0


def test_the_options_are_text() -> None:
    (step,) = parse_pipeline(["random{multiple_of=auto,runtime=vllm}"], PASSES)
    assert isinstance(step, Random)
    assert (step.multiple_of, step.width_multiple) == ("auto", 128)
    assert parse_pipeline([print_pipeline([step])], PASSES) == (step,)
    assert parse_pipeline(["random"], PASSES, {"runtime": "tp4", "multiple_of": 256})[0].width_multiple == 256  # type: ignore[attr-defined]
    assert aligned([], None, None) == []


BAD = {
    "random{runtime=vlm}": "runtime",
    "random{multiple_of=often}": "multiple_of",
    "random{runtime=gguf-k,multiple_of=32}": "multiple_of=32 is no multiple of 256, which runtime=gguf-k needs",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_requests(text: str) -> None:
    with pytest.raises(RequestError, match=BAD[text]):
        parse_pipeline([text], PASSES)


def test_a_multiple_larger_than_every_width_is_refused() -> None:
    with pytest.raises(RequestError, match=r"nothing to remove: .* in multiples of 1024"):
        kept(llama(), "random{ratio=0.5,multiple_of=1024,heads=off}")


def test_experts_that_a_token_needs_stay_and_are_said() -> None:
    state = run_passes(decoder_state(mixtral(8)), "random{ratio=0.9,heads=off,ffn=false,experts=true}")
    (remark,) = state.ledger.report["random"]["remarks"]
    assert remark == "every token needs 2 experts: model.layers.0.mlp:experts keeps as many of 8, not fewer"
    with pytest.raises(RequestError, match="nothing to remove"):
        run_passes(decoder_state(mixtral(2)), "random{ratio=0.5,heads=off,ffn=false,experts=true}")


def test_what_a_runtime_holds_whole_is_said() -> None:
    state = run_passes(decoder_state(llama()), "random{ratio=0.25,runtime=tp4}")
    assert "runtime=tp4 leaves heads whole" not in state.ledger.report["random"].get("remarks", [])
    state = run_passes(decoder_state(llama(intermediate_size=768)), "random{ratio=0.4,runtime=gguf-k}")
    assert any("runtime=gguf-k leaves heads whole" in said for said in state.ledger.report["random"]["remarks"])
    groups = (
        [g for g in state.subject.coupling.groups.values() if g.kind is Kind.WIDTH] if state.subject.coupling else []
    )
    assert all(group.size % 256 == 0 for group in groups)
