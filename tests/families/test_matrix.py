"""Every kind of attention and MLP in every form of artifact, reloaded by transformers alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fxprune.api import model_call
from fxprune.api.pruning import model_run
from fxprune.api.pruning.request import Applied, apply
from fxprune.backends.huggingface import weight_source
from fxprune.backends.huggingface.load import load
from fxprune.backends.verify import Job, verify
from fxprune.runtime.absence import absences
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference
from fxprune.tracer.export import Traced, trace_causal_lm

from ..corpora import RandomTokens

VOCAB = 61
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}

MODELS: dict[str, Any] = {
    "multi-head": transformers.LlamaConfig(**SMALL),
    "grouped-query": transformers.LlamaConfig(**GROUPED),
    "multi-query": transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 1}),
    "fused qkv": transformers.Phi3Config(**GROUPED),
    "tied": transformers.LlamaConfig(**{**SMALL, "tie_word_embeddings": True}),
    "biased": transformers.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "q/k-norm": transformers.Qwen3Config(**GROUPED, head_dim=8),
    "explicit head_dim": transformers.MistralConfig(**GROUPED, head_dim=12),
    "mixture of experts": transformers.MixtralConfig(**GROUPED, head_dim=8, num_local_experts=3, num_experts_per_tok=2),
}
FORMS: dict[str, tuple[str, str]] = {
    "uniform": ("random{ratio=0.5}", "uniform"),
    "free": ("random{ratio=0.5,layers=1:2}", "free"),
    "sub-blocks": ("drop{sub_blocks=2,samples=2,length=8},random{ratio=0.5}", "free"),
}
DEFAULT = ("grouped-query", "fused qkv", "tied", "mixture of experts")
"""Models that run by default; the others under the marker ``slow``."""


def marks(model: str) -> Any:
    return () if model in DEFAULT else pytest.mark.slow


CELLS = [pytest.param(model, form, marks=marks(model)) for model in MODELS for form in FORMS]


@dataclass(frozen=True)
class Cell:
    out: Path
    applied: Applied
    job: Job
    checks: dict[str, Any]


def write(folder: Path, config: Any) -> Path:
    """Random weights, such that the first layer, in whose cache models count positions, adds least."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.02 if ".layers.0." in name else 0.2, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[tuple[str, str], Cell]:
    """All artifacts, and what one fresh process finds in them."""
    jobs: list[Job] = []

    def postpone(job: Job, *_: object) -> dict[str, Any]:
        jobs.append(job)
        return {}

    traces: list[Traced] = []

    def trace_once(model: torch.nn.Module) -> Traced:
        """The same graph for every form of a source; what was changed is traced anew."""
        if absences(model):
            return trace_causal_lm(model)
        if not traces:
            traces.append(trace_causal_lm(model))
        return traces[0]

    def read_windows(run: Any, *_: Any) -> None:
        run.state.data.calibration = RandomTokens(VOCAB)

    made: dict[tuple[str, str], tuple[Path, Applied]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", postpone)
        patch.setattr(model_run.ModelRun, "read_texts", read_windows)
        patch.setattr(model_call, "trace_causal_lm", trace_once)
        wanted = MODELS if "slow" in (request.config.option.markexpr or "").replace("not slow", "") else DEFAULT
        for number, model in enumerate(wanted):
            config = MODELS[model]
            folder = tmp_path_factory.mktemp(f"model{number}")
            source = write(folder / "source", config)
            traces.clear()
            for form, (passes, _) in FORMS.items():
                made[model, form] = (folder / form, apply(source, passes, seed=1, out=folder / form))
    jobs = [replace(job, consent=job.consent.moved(out)) for job, (out, _) in zip(jobs, made.values(), strict=True)]
    found = zip(made.items(), jobs, verify(jobs), strict=True)
    return {key: Cell(out, applied, job, checks) for (key, (out, applied)), job, checks in found}


@pytest.mark.parametrize(("model", "form"), CELLS)
def test_a_cell_is_what_was_rewritten(model: str, form: str, cells: dict[tuple[str, str], Cell]) -> None:
    cell = cells[model, form]
    assert cell.applied.saved is not None
    assert cell.applied.saved.form == FORMS[form][1]
    assert cell.applied.parameters[1] < cell.applied.parameters[0]
    assert {"heads", "kv_heads", "width"} & {change.kind for change in cell.applied.groups}
    assert cell.checks["logits_worst_difference"] <= LOGITS_TOLERANCE
    assert cell.checks["cached_generate_equals_uncached"] is True
    assert cell.job.reference is not None
    with torch.no_grad():
        logits = load(cell.out)(**cell.job.reference.inputs).logits
    assert relative_difference(logits, cell.job.reference.logits) <= LOGITS_TOLERANCE


@pytest.mark.parametrize("model", [pytest.param(model, marks=marks(model)) for model in MODELS])
def test_what_is_absent_is_on_record(model: str, cells: dict[tuple[str, str], Cell]) -> None:
    out = cells[model, "sub-blocks"].out
    record = json.loads((out / "fxprune.json").read_text())["passes"]["drop"]["sub_blocks"]
    absent = json.loads((out / "config.json").read_text())["fxprune"]["absent"]
    assert sorted(part["kind"] for part in record) == ["attention", "mlp"]
    assert all(".layers.0." in part["module"] for part in record)
    assert sorted(absent) == sorted(path for part in record for path in part["with"])
    loaded = load(out)
    assert not [name for name in loaded.state_dict() if name.startswith(tuple(f"{path}." for path in absent))]
