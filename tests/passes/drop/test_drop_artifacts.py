"""Artifacts whose layers lack parts: loaded, pruned further, exported; and what cannot be asked of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fxprune import api
from fxprune.api.pruning import model_run
from fxprune.backends.huggingface import weight_source
from fxprune.backends.huggingface.load import load
from fxprune.backends.verify import Job
from fxprune.ir import FxpruneError
from fxprune.runtime.absence import absences
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference

from ...corpora import RandomTokens
from ...decoders import special_tokens

CONFIG = transformers.LlamaConfig(
    hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, **special_tokens(47),
)  # fmt: skip
SMALL = "samples=2,length=8"


@dataclass(frozen=True)
class Made:
    folder: Path
    source: Path
    out: Path


def read_windows(run: Any, *_: Any) -> None:
    run.state.data.calibration = RandomTokens(CONFIG.vocab_size)


@pytest.fixture(scope="module")
def jobs() -> Iterator[list[Job]]:
    """What a fresh process would be asked; here the artifacts are loaded in this one."""
    held: list[Job] = []

    def postpone(job: Job, *_: object) -> dict[str, Any]:
        held.append(job)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", postpone)
        patch.setattr(model_run.ModelRun, "read_texts", read_windows)
        yield held


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, jobs: list[Job]) -> Made:
    """A model whose layers are cut differently, that lost a layer and then the attention and the MLP of the first."""
    assert not jobs, "the first artifact is this one"
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.2 if ".layers." not in name else {"0": 0.0, "1": 0.02}.get(name.split(".")[2], 0.2)
            parameter.normal_(0, scale)
    model.save_pretrained(folder / "source")
    passes = f"random{{ratio=0.5,layers=2:4}},drop{{layers=1,sub_blocks=2,{SMALL}}}"
    api.apply(folder / "source", passes, seed=0, out=folder / "out")
    return Made(folder, folder / "source", folder / "out")


def check(out: Path, job: Job) -> Any:
    """The artifact computes what was rewritten, and decodes the same with a cache as without."""
    model = load(out).eval()
    assert job.reference is not None
    ids = job.reference.inputs["input_ids"]
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    with torch.no_grad():
        assert relative_difference(model(input_ids=ids).logits, job.reference.logits) <= LOGITS_TOLERANCE
        cached, uncached = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, uncached)
    return model


def test_layers_and_then_parts_of_what_is_left(made: Made, jobs: list[Job]) -> None:
    model = check(made.out, jobs[0])
    assert len(model.model.layers) == 3
    gone = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
    assert set(absences(model)) == {f"model.layers.0.{child}" for child in gone}
    record = json.loads((made.out / "fxprune.json").read_text())
    assert record["why_free"] == "model.layers.0.self_attn is absent"
    assert record["passes"]["drop"]["dropped"] == [0]
    assert {part["module"] for part in record["passes"]["drop"]["sub_blocks"]} == {
        "model.layers.0.self_attn", "model.layers.0.mlp",
    }  # fmt: skip


def test_an_artifact_is_cut_further(made: Made, jobs: list[Job]) -> None:
    passes = f"drop{{sub_blocks=1,of=mlp,{SMALL}}},random{{ratio=0.25,channels=true}}"
    api.apply(made.out, passes, seed=0, out=made.folder / "again", trust_remote_code=True)
    model = check(made.folder / "again", jobs[-1])
    assert len(absences(model)) == 6
    assert model.model.embed_tokens.weight.shape[1] == 24


@pytest.mark.slow
def test_an_export_decodes_greedily_as_the_model(made: Made) -> None:
    report = api.export(made.out, made.folder / "onnx", trust_remote_code=True)
    assert report.greedy_equal == report.greedy_tokens > 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda made: api.apply(made.source, plan=made.out, out=made.folder / "no"),
            r"a run that dropped model\.layers\.0\.\w+, model\.layers\.0\.\w+; a plan cannot repeat that",
        ),
        (
            lambda made: api.apply(
                made.source, f"drop{{sub_blocks=1,{SMALL}}}", out=made.folder / "no", form="uniform"
            ),
            "no plain configuration describes the pruned model: model.layers.0.self_attn is absent",
        ),
        (
            lambda made: api.apply(
                made.out, f"drop{{layers=1,{SMALL}}}", out=made.folder / "no", trust_remote_code=True
            ),
            "layers cannot be removed after sub-blocks",
        ),
    ],
)
def test_what_is_refused(made: Made, ask: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        ask(made)
    assert caught.value.hint
    assert not (made.folder / "no").exists()
