"""llama.cpp decodes from a written file what torch decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.backends.gguf.architectures import supported
from fxprune.backends.gguf.check import LlamaCppChecks, check_llama_cpp
from fxprune.backends.gguf.written_file import Contents, write_contents
from fxprune.backends.verify import VerificationError
from fxprune.runtime.tolerances import GGUF_LOGITS_TOLERANCE

from .changed import fewer_queries, narrowed, without
from .models import decoder, described, gguf, tokenizer

pytest.importorskip("xllamacpp", reason="comes with the extra fxprune[test]")

FAST = ("gemma3_text", "gpt2", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""The others run with -m slow."""

ROTATED_OTHERWISE = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16, "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0},
}  # fmt: skip


def in_llama_cpp(model: Any, folder: Path, *, padded: bool = False, dtype: str = "float32") -> LlamaCppChecks:
    made = described(model, padded=padded)
    file = folder / "model.gguf"
    write_contents(file, made.contents, dtype, gguf)
    return check_llama_cpp(file, model, tokenizer(), made.context, exact=dtype == "float32")


def assert_equal(checks: LlamaCppChecks) -> None:
    assert checks.greedy_equal == checks.greedy_tokens == 32
    assert checks.worst_difference <= GGUF_LOGITS_TOLERANCE


@pytest.mark.parametrize(
    "model_type", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in supported()]
)
def test_uniform(model_type: str, tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(decoder(model_type), tmp_path))


GEMMA3_ROTATION = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1}),
    ("olmo", {"clip_qkv": 0.5}),
    ("gemma3_text", {"rope_parameters": GEMMA3_ROTATION}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}),
    ("stablelm", {"use_qkv_bias": False, "use_parallel_residual": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    ("starcoder2", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("gpt2", {"tie_word_embeddings": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=[f"{name} {list(how)}" for name, how in VARIANTS])
def test_variants(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(decoder(model_type, **changes), tmp_path))


@pytest.mark.parametrize("kind", ROTATED_OTHERWISE)
def test_scaled_rotation(kind: str, tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(decoder("llama", rope_parameters=ROTATED_OTHERWISE[kind]), tmp_path))


@pytest.mark.parametrize("model_type", ["llama", pytest.param("mistral", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("attention", "ffn"),
    [((0,), ()), ((1,), ()), ((), (0,)), ((), (1,)), ((1,), (1,)), ((0,), (0,))],
    ids=["first attention", "last attention", "first ffn", "last ffn", "last layer", "first layer"],
)
def test_dropped_parts(model_type: str, attention: tuple[int, ...], ffn: tuple[int, ...], tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(without(decoder(model_type), attention, ffn), tmp_path))


def test_fewer_queries_for_each_key(tmp_path: Path) -> None:
    model = fewer_queries(decoder("llama"), 1)
    assert_equal(in_llama_cpp(model, tmp_path))
    assert_equal(in_llama_cpp(model, tmp_path, padded=True))


def test_a_window_ends_the_context(tmp_path: Path) -> None:
    made = described(decoder("mistral", sliding_window=32))
    assert (made.context, made.contents.metadata["llama.context_length"]) == (32, 32)
    assert "no sliding window" in made.shortened
    checks = in_llama_cpp(decoder("mistral", sliding_window=32), tmp_path)
    assert checks.greedy_equal == checks.greedy_tokens == 24


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_widths_per_layer(model_type: str, tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(narrowed(decoder(model_type), 1, 2, 20), tmp_path))


PADDED_TOO = ("falcon", "gpt_neox", "phi3", "stablelm")
"""Fused matrices in other orders, and norms with biases."""


@pytest.mark.parametrize("model_type", ["llama", "qwen2", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_padded_widths(model_type: str, tmp_path: Path) -> None:
    model = narrowed(decoder(model_type), 0, 2, 20)
    made = described(model, padded=True)
    assert not made.form.per_layer
    assert made.form.zeros > 0
    assert_equal(in_llama_cpp(model, tmp_path, padded=True))


@pytest.mark.parametrize(
    "model_type", ["qwen2", "gpt2", "olmo2", *(pytest.param(name, marks=pytest.mark.slow) for name in PADDED_TOO)]
)
def test_padded_parts(model_type: str, tmp_path: Path) -> None:
    for attention, ffn in ((0, 1), (1, 0)):
        assert_equal(in_llama_cpp(without(decoder(model_type), (attention,), (ffn,)), tmp_path, padded=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_rounded_types(dtype: str, tmp_path: Path) -> None:
    checks = in_llama_cpp(decoder("llama", intermediate_size=64, hidden_size=96), tmp_path, dtype=dtype)
    assert checks.greedy_tokens == 32
    assert 1e-5 < checks.worst_difference < {"float16": 0.02, "bfloat16": 0.2, "q8_0": 0.3}[dtype]


@pytest.mark.parametrize("model_type", ["llama", "stablelm"])
def test_a_head_that_is_the_embedding(model_type: str, tmp_path: Path) -> None:
    model = decoder(model_type, tie_word_embeddings=True)
    assert ("output.weight" in described(model).contents.tensors) == (model_type == "stablelm")
    assert_equal(in_llama_cpp(model, tmp_path))


def test_a_file_of_another_model_is_found(tmp_path: Path) -> None:
    made = described(decoder("llama"))
    write_contents(tmp_path / "model.gguf", made.contents, "float32", gguf)
    other = decoder("llama")
    with torch.no_grad():
        other.model.layers[1].self_attn.k_proj.weight[16:32] *= -1
    with pytest.raises(VerificationError, match=r"llama\.cpp computes something else"):
        check_llama_cpp(tmp_path / "model.gguf", other, None, made.context, exact=True)


def test_a_file_that_llama_cpp_does_not_load_is_told_with_its_reason(tmp_path: Path) -> None:
    made = described(decoder("llama"))
    missing = {name: tensor for name, tensor in made.contents.tensors.items() if name != "blk.1.ffn_up.weight"}
    contents = Contents(made.contents.name, made.contents.metadata, missing)
    write_contents(tmp_path / "model.gguf", contents, "float32", gguf)
    with pytest.raises(VerificationError, match=r"cannot load .* 'blk\.1\.ffn_up\.weight' not found"):
        check_llama_cpp(tmp_path / "model.gguf", decoder("llama"), None, made.context, exact=True)
