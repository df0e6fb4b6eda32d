"""llama.cpp decodes from a written file what torch decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxprune.backends.gguf.architectures import supported
from fxprune.backends.gguf.check import LlamaCppChecks, check_llama_cpp
from fxprune.backends.gguf.written_file import write_contents
from fxprune.backends.huggingface.free_form import Absent
from fxprune.runtime.tolerances import GGUF_LOGITS_TOLERANCE

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


def without(model: Any, attention: tuple[int, ...], ffn: tuple[int, ...]) -> Any:
    """A model without the attention and the feed-forward networks of some layers."""
    for number in attention:
        name = next(name for name in ("self_attn", "attn", "attention") if hasattr(layers(model)[number], name))
        setattr(layers(model)[number], name, Absent({"outputs": 2, "cache": number}))
    for number in ffn:
        layers(model)[number].mlp = Absent({"outputs": 0, "cache": None})
    return model


def layers(model: Any) -> Any:
    inner = model.get_decoder()
    return inner.layers if hasattr(inner, "layers") else inner.h


@pytest.mark.parametrize(
    "model_type", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in supported()]
)
def test_uniform(model_type: str, tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(decoder(model_type), tmp_path))


@pytest.mark.parametrize("kind", ROTATED_OTHERWISE)
def test_scaled_rotation(kind: str, tmp_path: Path) -> None:
    assert_equal(in_llama_cpp(decoder("llama", rope_parameters=ROTATED_OTHERWISE[kind]), tmp_path))


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize(
    ("attention", "ffn"),
    [((0,), ()), ((1,), ()), ((), (0,)), ((), (1,)), ((1,), (1,)), ((0,), (0,))],
    ids=["first attention", "last attention", "first ffn", "last ffn", "last layer", "first layer"],
)
def test_dropped_parts(model_type: str, attention: tuple[int, ...], ffn: tuple[int, ...], tmp_path: Path) -> None:
    if model_type == "mistral" and not (attention and ffn):
        attention, ffn = ffn, attention
    assert_equal(in_llama_cpp(without(decoder(model_type), attention, ffn), tmp_path))
