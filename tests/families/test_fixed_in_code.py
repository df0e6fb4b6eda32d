"""What the code of a model fixes and nothing in it shows: it stays and is named, and everything else is pruned. And
checks that a source does not pass itself: they are not asked of the result, and the result says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fxprune import api
from fxprune.api.terminal.shares import shares
from fxprune.api.terminal.tables import applied as table
from fxprune.backends.verify import NOT_ASKED
from fxprune.passes.model.measure import parameter_count

from .causal_lm import NOT_SAVED, NOT_TRACED, ROWS, tiny_model

LINEAR = "`get_seq_length` can only be called on Attention layers"
"""What transformers says where it decodes with layers none of which is attention."""


def source_of(name: str, folder: Path, row: dict[str, Any] | None = None) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        if row is not None:
            patch.setitem(ROWS, name, row)
        tiny_model(name).save_pretrained(folder / "source")
    return folder / "source"


@pytest.mark.parametrize(
    ("name", "row", "left", "pruned"),
    [
        pytest.param("codegen", None, {"kv_heads"}, {"channels", "width"}, id="codegen: heads in four parts"),
        pytest.param(
            "big_bird", None, {"channels"}, {"heads", "width"}, id="big_bird: a pooler that nothing reads",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "big_bird", {"attention_type": "block_sparse"}, {"channels", "heads"}, {"width"},
            id="big_bird: attention that is made anew when a short text comes", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_what_the_code_fixes_stays_whole_and_is_named(
    name: str, row: dict[str, Any] | None, left: set[str], pruned: set[str], tmp_path: Path
) -> None:
    source = source_of(name, tmp_path, row)
    result = api.apply(source, "random{heads=kv,channels=true}", ratio=0.5, seed=1, out=tmp_path / "out")
    assert {change.kind for change in result.groups if change.after < change.before} == pruned
    assert result.report["random"]["left_whole"].keys() == left
    said = [
        line for line in shares(result.report) if "stay as they are, since the code of the model fixes them" in line
    ]
    assert len(said) == len(left)
    assert result.saved is not None
    assert result.saved.checks["logits_worst_difference"] <= 1e-5
    record = json.loads((tmp_path / "out" / "fxprune.json").read_text())
    assert record["passes"]["random"]["left_whole"] == result.report["random"]["left_whole"]


def test_a_budget_that_is_missed_since_the_code_fixes_heads_is_told_of(tmp_path: Path) -> None:
    source = source_of("codegen", tmp_path)
    result = api.apply(source, "random{heads=kv,target=params:0.84}", seed=1, out=tmp_path / "out")
    assert result.report["random"]["left_whole"].keys() == {"kv_heads"}
    found = json.loads((tmp_path / "out" / "fxprune.json").read_text())["passes"]["random"]["allocation"]
    assert found["reached"] == parameter_count(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert found["reached"] > 1.005 * found["budget"]
    assert any("the budget of" in line and f"{found['reached']:,}" in line for line in shares(result.report))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param("bamba", {"attn_layer_indices": []}, id="bamba"),
        pytest.param(
            "bailing_hybrid", {"layer_types": ["linear_attention"] * 2}, id="bailing_hybrid", marks=pytest.mark.slow
        ),
    ],
)
def test_a_source_that_cannot_run_with_its_own_cache_is_compared_without(
    name: str, row: dict[str, Any], tmp_path: Path
) -> None:
    """A hybrid of two layers, neither of which is attention."""
    source = source_of(name, tmp_path, row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROWS, name, row)
        dense = tiny_model(name)
    with pytest.raises(ValueError, match=LINEAR):
        dense.generate(input_ids=torch.tensor([[3, 4, 5]]), max_new_tokens=2, do_sample=False)
    result = api.apply(source, "random{channels=true}", ratio=0.5, seed=1, out=tmp_path / "out")
    assert {change.kind for change in result.groups} == {"channels", "width"}
    assert result.saved is not None
    checks = json.loads((tmp_path / "out" / "fxprune.json").read_text())["checks"]
    assert checks == result.saved.checks
    assert LINEAR in checks["runs_without_cache_only"]
    assert checks[NOT_ASKED].startswith(f"the source does not pass this check either: ValueError: {LINEAR}")
    assert checks["logits_worst_difference"] <= 1e-5
    printed = " ".join(str(line) for line in table(result))
    assert "decoding with a cache not asked for: the source does not pass this check either" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("dbrx", "export"), ("longcat_flash", "export"), ("gemma3n", "build"), ("gemma4_assistant", "build"),
        ("gemma4_unified_assistant", "run"),
    ],
)  # fmt: skip
def test_a_reason_that_the_source_shares_is_what_transformers_and_torch_say_of_it(name: str, stage: str) -> None:
    """Without fxprune: the model is built, called, and exported by torch alone."""
    ids, stages = torch.tensor([[3, 4, 5, 6, 7]]), {}
    row = {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}
    with pytest.MonkeyPatch.context() as patch:
        if name == "gemma4_assistant":  # as its own validation asks for
            patch.setitem(ROWS, name, row)
        try:
            stages["build"] = ""
            model = tiny_model(name)
            stages["run"] = ""
            model(input_ids=ids)
            stages["export"] = ""
            torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
        except Exception as error:
            stages[stage] = str(error)
    assert list(stages)[-1] == stage
    said = {**NOT_TRACED, **NOT_SAVED}[name].rpartition(": ")[2]
    if name == "gemma3n":
        said = "TimmWrapperModel requires"
    assert said in " ".join(stages[stage].split())
