"""sentence-transformers on a pruned encoder: the vectors that torch gives, by the modules of the source."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers

import fxprune
from fxprune.benchmarks.deployment.run import FOLDER, environment_of
from fxprune.tests.backends.huggingface.test_pipelines import MODULES, tokenizer, with_modules
from fxprune.tests.families.other import tiny_config

TEXTS = ["the fox", "a wood in the wood", "the fox in a wood"]


def expected(out: Path) -> torch.Tensor:
    """The mean over the tokens that are no padding, at unit length."""
    model = transformers.AutoModel.from_pretrained(out, trust_remote_code=True).eval()
    read = transformers.AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    mask = read["attention_mask"][..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.deployment
@pytest.mark.parametrize(("form", "pipeline"), [
    ("uniform", "magnitude{ratio=0.25,heads=off}"), ("free", "magnitude{ratio=0.25,layers=0:1}"),
])  # fmt: skip
def test_vectors_are_those_of_torch(form: str, pipeline: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    torch.manual_seed(0)
    transformers.BertModel(tiny_config("bert")).save_pretrained(source)
    tokenizer().save_pretrained(source)
    with_modules(source, MODULES)
    assert fxprune.apply(source, pipeline, out=out).saved.form == form
    environments = Path(os.environ.get("FXPRUNE_DEPLOYMENT") or tmp_path).resolve()
    python = environment_of({"environment": "small"}, environments).python
    job = {"directory": str(out), "own_code": form == "free", "texts": TEXTS}
    done = subprocess.run(
        [str(python), str(FOLDER / "runners" / "sentences.py")], input=json.dumps(job), capture_output=True, text=True,
        check=False, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["modules"] == ["Transformer", "Pooling", "Normalize"]
    assert torch.allclose(torch.tensor(found["vectors"]), expected(out), atol=1e-5)
