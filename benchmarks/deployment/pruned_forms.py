"""A model in the forms that pruning gives, and what torch decodes from each: what runtimes are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import fxprune
from fxprune.demo import MODEL_DIR, text

COUNT = 32
"""Tokens that are decoded."""

PROMPT = "The function returns a list of"

PIPELINES = {
    "uniform": "magnitude{ratio=0.25}",
    "inner widths per layer": "magnitude{ratio=0.25,heads=off,layers=1:-1}",
    "heads per layer": "magnitude{ratio=0.25,layers=1:-1}",
    "parts taken out": "drop{sub_blocks=1,of=attention,samples=4,length=32},"
    "drop{sub_blocks=1,of=mlp,samples=4,length=32}",
}
"""Form -> passes; -1 stands for the last layer, which stays as it is, like the first."""


@dataclass(frozen=True)
class Pruned:
    """A pruned directory and its reference.

    Attributes:
        directory: the model.
        own_code: whether it has a modelling file.
        prompt, expected: token ids, and those that torch decodes after them.
        logprobs: of each expected token, in float32.
        exports: what was made of it -> where that is.
    """

    directory: str
    own_code: bool
    prompt: list[int]
    expected: list[int]
    logprobs: list[float]
    exports: dict[str, str] = field(default_factory=dict)

    def export(self, kind: str, **options: Any) -> Path:
        """A directory or a file of fxprune's own formats, made once for each choice of options."""
        key = f"{kind} {json.dumps(options, sort_keys=True)}"
        if key not in self.exports:
            out = Path(f"{self.directory}-{len(self.exports)}{'.gguf' if kind == 'gguf' else ''}")
            fxprune.export(self.directory, out, format=kind, trust_remote_code=self.own_code, force=True, **options)
            self.exports[key] = str(out)
        return Path(self.exports[key])


def prune(model: str, form: str, folder: Path, calib: Path | None = None) -> Pruned:
    """A form of a model in ``folder``; that of an earlier run, if its passes and source are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / form.replace(" ", "-")
    config = MODEL_DIR if model == "demo" else Path(model)
    layers = json.loads((config / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    pipeline = PIPELINES[form].replace(":-1", f":{layers - 1}")
    kept, wanted = made.with_suffix(".json"), [str(config.resolve()), pipeline, version("fxprune")]
    if kept.is_file() and (found := json.loads(kept.read_text(encoding="utf-8")))["made_by"] == wanted:
        return Pruned(**found["pruned"])
    saved = fxprune.apply(model, pipeline, calib=calib, out=made, force=True).saved
    pruned = reference(made, own_code=saved.form == "free")
    kept.write_text(json.dumps({"made_by": wanted, "pruned": asdict(pruned)}), encoding="utf-8")
    return pruned


def suited(row: Mapping[str, Any], folder: Path) -> tuple[str, Path | None]:
    """The model that a runtime is tried with, and its calibration text where that is not the model's own: the demo, or,
    for a runtime whose kernels have other head sizes, the demo's architecture with such heads and untrained weights.

    Args:
        row: the runtime's of ``runtimes.json``.
        folder: where such a model is, or will be made.
    """
    if (size := row.get("head_size")) is None:
        return "demo", None
    made, calib = folder / f"heads-of-{size}", folder / "calibration.txt"
    if not calib.is_file():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(MODEL_DIR, head_dim=size, tie_word_embeddings=False, dtype="float32")
        AutoModelForCausalLM.from_config(config).save_pretrained(made)
        AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(made)
        calib.write_text(text("calibration"), encoding="utf-8")
    return str(made), calib


@torch.no_grad()
def reference(directory: Path, *, own_code: bool) -> Pruned:
    """What torch decodes greedily, in float32; an end token does not stop it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=own_code).eval()
    prompt = AutoTokenizer.from_pretrained(directory)(PROMPT)["input_ids"]
    sequence = list(prompt)
    for _ in range(COUNT):
        sequence.append(int(model(torch.tensor([sequence])).logits[0, -1].argmax()))
    rows = model(torch.tensor([sequence[:-1]])).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
    expected = sequence[len(prompt) :]
    logprobs = [float(row[token]) for row, token in zip(rows, expected, strict=True)]
    return Pruned(str(directory), own_code, list(prompt), expected, logprobs)
