"""The table of docs/deploy.md on GGUF: tiny models of every architecture, pruned in four ways, exported, and decoded by
llama.cpp; or refused, with the message.

    python -m fxprune.benchmarks.deployment.gguf_table [MODEL_TYPE ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import fxprune
from fxprune.backends.gguf.architectures import supported

WIDTHS = {
    "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "gpt2": {"n_inner": 96},
    "qwen3": {"head_dim": 16},
}

FORMS = {
    "inner widths": "magnitude{ratio=0.34,heads=off}",
    "heads and inner widths": "magnitude{ratio=0.34}",
    "widths per layer": "magnitude{ratio=0.34,layers=1:2}",
    "parts taken out": "drop{sub_blocks=1,of=attention,samples=4,length=16},"
    "drop{sub_blocks=1,of=mlp,samples=4,length=16}",
}


def decoder(model_type: str, vocabulary: int) -> Any:
    """A tiny model all of whose weights matter."""
    from fxprune.tests.backends.gguf import models

    values = {**models.OWN.get(model_type, {}), "vocab_size": vocabulary, **WIDTHS, **OWN.get(model_type, {})}
    if model_type == "falcon":
        values["ffn_hidden_size"] = 96
    if model_type == "gpt_neox":
        values["num_key_value_heads"] = None
    config = AutoConfig.for_model(model_type, **{name: value for name, value in values.items() if value is not None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def exported(folder: Path, out: Path, **options: Any) -> str:
    """What came out of an export, in a few words."""
    try:
        report: Any = fxprune.export(folder, out, format="gguf", force=True, trust_remote_code=True, **options)
    except fxprune.FxpruneError as error:
        return error.message.replace(f"{folder} ", "").replace("|", "/")
    checks = report.llama_cpp
    return f"{checks.greedy_equal} of {checks.greedy_tokens} ({report.architecture})"


def main(names: list[str]) -> None:
    """Print the rows of the table."""
    from fxprune.tests.backends.gguf.models import VOCABULARY, tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "text.txt")
        text.write_text("the fox and the hen on a hill in the sun. " * 40)
        for model_type in names or supported():
            source = Path(scratch, model_type)
            decoder(model_type, VOCABULARY).save_pretrained(source)
            tokenizer().save_pretrained(source)
            for form, pipeline in FORMS.items():
                pruned = Path(scratch, f"{model_type}-pruned")
                try:
                    made = fxprune.apply(source, pipeline, calib=text, out=pruned, force=True).saved.form
                except fxprune.FxpruneError as error:
                    print(f"| {model_type} | {form} | not pruned: {error.message} | |", flush=True)
                    continue
                out = Path(scratch, "model.gguf")
                plain, padded = exported(pruned, out), exported(pruned, out, pad=True)
                print(f"| {model_type} | {form} ({made}) | {plain} | {padded} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
