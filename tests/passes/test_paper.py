"""The paper's arithmetic, from configurations alone: no weights, no memory, little time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from fxprune.ir.graph import Graph
from fxprune.passes.model.measure import parameter_count
from fxprune.passes.score.random import Random
from fxprune.tracer.export import trace_causal_lm

from ..states import decoder_state

GEOMETRIES: dict[str, tuple[dict[str, Any], tuple[int, int], int, int]] = {
    "LLaMA-7B": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
        (4, 30), 6_738_415_616, 5_422_977_024,
    ),
    "Llama-3-8B": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256},
        (4, 30), 8_030_261_248, 6_612_586_496,
    ),
    "TinyLlama-1.1B": (
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
         "num_key_value_heads": 4},
        (4, 18), 1_100_048_384, 945_907_712,
    ),
}  # fmt: skip
"""Configuration, layers, parameters before and after: counts as published for LLM-Pruner at a ratio of 0.25."""


def elements(graph: Graph) -> int:
    return sum(math.prod(p.value.shape) for p in graph.parameters if not p.is_buffer)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "LLaMA-7B" else pytest.mark.slow) for name in GEOMETRIES],
)
def test_the_paper_s_parameter_counts(name: str) -> None:
    options, layers, before, after = GEOMETRIES[name]
    config = transformers.LlamaConfig(**options)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    traced = trace_causal_lm(model)
    state = decoder_state(model, traced)
    assert elements(traced.graph) == before
    Random(ratio=0.25, layers=layers).run(state)
    assert elements(state.subject.graph) == after
    assert parameter_count(state.subject.model) == after
