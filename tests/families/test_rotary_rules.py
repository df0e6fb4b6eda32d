"""Every rule by which rotary frequencies depend on length: pruned, written, and loaded by transformers, below the
length that a model was trained on and beyond it, where some rules compute other frequencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, PreTrainedConfig

from fxprune.api.pruning.request import apply
from fxprune.backends.artifact import read_plan
from fxprune.backends.graph_module import raise_graph
from fxprune.backends.verify import Job
from fxprune.runtime.tensors import tensors_by_every_name
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference
from fxprune.tracer.export import trace_causal_lm, trace_model

from ..checkpoints import WIDTHS, write_checkpoint
from ..corpora import word_tokenizer

ORIGINAL = 16
"""The length that the models were trained on."""
SHORT, LONG = 11, 40

WORDS = list("abcdefgh")

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {**FACTORS, "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 4.0, "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    },
}  # fmt: skip
GROWING = {"dynamic", "longrope"}
"""Rules that compute other frequencies beyond the original length."""


def config_of(config_class: type[PreTrainedConfig], rule: str) -> PreTrainedConfig:
    """A model that knows ``ORIGINAL`` positions, or four times as many by its rule."""
    known = ORIGINAL if rule == "dynamic" else 4 * ORIGINAL
    rope = {"rope_type": rule, "rope_theta": 100.0, **RULES[rule]}
    widths = {**WIDTHS, "max_position_embeddings": known, "eos_token_id": 1, "pad_token_id": 0}
    if "original_max_position_embeddings" in rope:  # Phi-3 reads it from here
        widths["original_max_position_embeddings"] = ORIGINAL
    return config_class(**widths, rope_parameters=rope)


def written(tmp_path: Path, config: PreTrainedConfig, passes: str, **options: Any) -> tuple[Path, Path]:
    source = write_checkpoint(tmp_path / "source", config, dtype=torch.float32)
    word_tokenizer(WORDS).save_pretrained(source)
    apply(source, passes, ratio=0.5, out=tmp_path / "out", **options)
    return source, tmp_path / "out"


def masked(source: Path, out: Path) -> Any:
    """The model with zeros where the plan removed units."""
    model = AutoModelForCausalLM.from_pretrained(source)
    tensors = model.state_dict()
    for (name, dim), kept in read_plan(out).items():
        gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
        gone[torch.from_numpy(kept)] = False
        tensors[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return model.eval()


def logits(model: torch.nn.Module, length: int) -> torch.Tensor:
    ids = torch.arange(length)[None] % 26
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def check(source: Path, out: Path, rule: str) -> None:
    # Phi-3 with fewer heads is no plain config: its head size is the width per head.
    whole, small = masked(source, out), AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    assert small.num_parameters() < whole.num_parameters()
    assert small.config.rope_parameters["rope_type"] == rule
    for length in (SHORT, LONG, SHORT):  # and back again
        assert relative_difference(logits(small, length), logits(whole, length)) <= LOGITS_TOLERANCE, length
    alike = relative_difference(logits(small, LONG)[:, :SHORT], logits(small, SHORT)) <= LOGITS_TOLERANCE
    assert alike is (rule not in GROWING)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.parametrize("rule", RULES)
def test_a_llama_of_every_rule(rule: str, offload: str, tmp_path: Path, jobs: list[Job]) -> None:
    check(*written(tmp_path, config_of(LlamaConfig, rule), "magnitude", offload=offload), rule)
    assert jobs


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.parametrize("passes", ["magnitude", "taylor{samples=2,length=8}"])
def test_fused_weights_and_long_context(passes: str, offload: str, tmp_path: Path, jobs: list[Job]) -> None:
    calib = {"calib": [" ".join(WORDS * 8)]} if passes.startswith("taylor") else {}
    check(*written(tmp_path, config_of(Phi3Config, "longrope"), passes, offload=offload, **calib), "longrope")
    assert jobs


def test_a_model_that_has_run_beyond_is_traced_as_below_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(LlamaConfig, "dynamic")).eval()
    expected, ids = logits(model, SHORT), torch.arange(SHORT)[None]
    logits(model, LONG)
    rotary = model.model.rotary_emb
    grown, rule = rotary.inv_freq, rotary.rope_type
    traced = trace_model(model, {"input_ids": ids, "use_cache": False}, output="logits")
    assert rotary.inv_freq is grown
    assert rotary.rope_type is rule == "dynamic"
    assert not torch.equal(grown, rotary.original_inv_freq)
    (found,) = raise_graph(traced.graph, tensors_by_every_name(model), traced.constants)(ids)
    assert relative_difference(found, expected) <= LOGITS_TOLERANCE


def test_a_rule_for_each_kind_of_layer() -> None:
    kinds = {"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "dynamic", "factor": 4.0}}
    config = Gemma3TextConfig(
        **{**WIDTHS, "max_position_embeddings": ORIGINAL}, head_dim=8, layer_types=list(kinds), sliding_window=8,
        rope_parameters={kind: {"rope_theta": 100.0, **rule} for kind, rule in kinds.items()},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert trace_causal_lm(model).graph.ops
    assert model.model.rotary_emb.rope_type == {kind: rule["rope_type"] for kind, rule in kinds.items()}
