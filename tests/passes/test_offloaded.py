"""Passes that run a model whose weights are on disk, or in memory in the dtype of the files: the files are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig

from fxprune import api
from fxprune.api.pruning import model_run
from fxprune.backends.verify import Job

from ..checkpoints import LLAMA, TIED, WIDTHS, contents, write_checkpoint
from ..corpora import RandomTokens

MIXTURE = MixtralConfig(**WIDTHS, num_local_experts=4, num_experts_per_tok=2)
"""Its tensors are merged when they are loaded."""

SMALL = "samples=3,length=8"
PIPELINES: dict[str, dict[str, Any]] = {
    f"drop{{layers=1,{SMALL}}},taylor{{{SMALL}}}": {},
    f"drop{{layers=0,sub_blocks=1,{SMALL}}},wanda{{{SMALL}}}": {},
    f"drop{{by=perplexity,{SMALL}}}": {},
    f"drop{{layers=0,sub_blocks=2,by=perplexity,{SMALL}}}": {},
    "generate{windows=4,length=8},fisher{samples=4,length=8,batch=1}": {},
    f"wanda{{by=search,moves=4,{SMALL},batch=2}}": {"target": "params=0.8"},
}


def read_windows(run: Any, *_: Any) -> None:
    run.state.data.calibration = RandomTokens(run.config.vocab_size)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("passes", PIPELINES)
def test_where_weights_are_makes_no_difference(
    passes: str, tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", TIED if "search" in passes else LLAMA)
    compare(source, passes, tmp_path, monkeypatch, **PIPELINES[passes])
    assert len(jobs) == 3


def compare(source: Path, passes: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """Apply passes with weights in memory and elsewhere; returns what was said."""
    monkeypatch.setattr(model_run.ModelRun, "read_texts", read_windows)
    found, said = {}, []
    for offload in ("none", "memory", "disk"):
        out = folder / offload
        applied = api.apply(source, passes, out=out, offload=offload, progress=said.append, **options)
        assert applied.placement is not None
        assert applied.placement.offload == offload
        found[offload] = contents(out)
    assert found["memory"] == found["none"]
    assert found["disk"] == found["none"]
    return said


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("passes", "pickled"),
    [(f"drop{{layers=1,{SMALL}}},taylor{{{SMALL},experts=true}}", False), (f"wanda{{{SMALL}}}", True)],
)
def test_weights_that_are_merged_when_loaded_are_converted_once(
    passes: str, pickled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", MIXTURE)
    if pickled:
        (file,) = source.glob("*.safetensors")
        torch.save(load_file(file), source / "pytorch_model.bin")
        file.unlink()
    said = compare(source, passes, tmp_path, monkeypatch, allow_pickle=pickled)
    why = "its files are not safetensors" if pickled else "it holds 0 tensors for model.layers.0.mlp"
    assert len([line for line in said if line.startswith("converting") and why in line]) == 2
