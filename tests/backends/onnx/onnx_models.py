"""Tiny decoders on disk, for tests that export them to ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from fxprune.backends.onnx import decoder as backend
from fxprune.backends.onnx.artifact import OnnxReport, OnnxRequest
from fxprune.backends.onnx.decoder import export_onnx
from fxprune.runtime.consent import Consent

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**BASE, "num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "gpt2": ("gpt2", BASE),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "mistral-window": ("mistral", {**GROUPED, "sliding_window": 4}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 8}),
    "gpt-neox": ("gpt_neox", {**BASE, "intermediate_size": 48}),
    "opt": ("opt", {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi3": ("phi3", GROUPED),
    "falcon": ("falcon", {**BASE, "multi_query": True, "new_decoder_architecture": False}),
    "falcon-grouped": ("falcon", {**BASE, "num_kv_heads": 2, "new_decoder_architecture": True}),
}
# Positions go far beyond what float16 counts exactly; widths that no block of 32 divides.
TIED = {**GROUPED, "tie_word_embeddings": True, "max_position_embeddings": 8192}
# A modelling file as the free form brings it: kv heads and widths differ between layers.
FREE_FORM = """
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
import copy

class FreeForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for index, changes in enumerate(config.layer_changes):
            own = copy.deepcopy(config)
            for name, value in changes.items():
                setattr(own, name, value)
            self.model.layers[index] = LlamaDecoderLayer(own, index)
        self.post_init()
"""


def build(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny random model of a family with a tokenizer, as save_pretrained leaves it."""
    torch.manual_seed(0)
    model_type, values = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Wider than the usual initialisation: logits that hardly differ would let a wrong graph pass.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(97)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def build_free(folder: Path) -> Path:
    build(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    config["layer_changes"] = [
        {"num_key_value_heads": 4, "intermediate_size": 24},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 40, "head_dim": 8},
    ]
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_free.FreeForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_free.py").write_text(FREE_FORM)
    scope: dict[str, Any] = {}
    exec(FREE_FORM, scope)
    torch.manual_seed(0)
    loaded = transformers.AutoConfig.from_pretrained(folder)
    weights = {name: tensor.clone() for name, tensor in scope["FreeForCausalLM"](loaded).state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


ROUNDED = ("float16", "int8", "int4")
"""What weights are rounded to; float32 is what the models hold."""


class Decoders:
    """Two models, and what was exported from each; the graph of a model is traced once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[tuple[str, ...], OnnxReport] = {}

    def source(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(FAMILIES, "tied", ("llama", TIED))
                patch.setitem(FAMILIES, "llama", ("llama", {**TIED, "tie_word_embeddings": False}))
                build_free(path) if name == "free" else build(path, name)
        return path

    def export(self, name: str, dtype: str = "float32", layout: str = "onnxruntime") -> OnnxReport:
        key = (name, dtype, layout)
        if key in self.made:
            return self.made[key]
        source = self.source(name)
        consent = Consent.of_user(source, code=name == "free")
        request = OnnxRequest(source, self.folder / "-".join(key), dtype=dtype, layout=layout, consent=consent)
        with pytest.MonkeyPatch.context() as patch:
            if key != (name, "float32", "onnxruntime"):
                graph = self.export(name).path / "model.onnx"
                patch.setattr(backend, "trace_onnx", lambda _model, **_options: ir.load(graph))
            self.made[key] = export_onnx(request)
        return self.made[key]

    def torch(self, name: str) -> Any:
        found = transformers.AutoModelForCausalLM.from_pretrained(
            self.source(name), dtype=torch.float32, trust_remote_code=name == "free"
        ).eval()
        found.generation_config = transformers.GenerationConfig(pad_token_id=0)  # without an end token
        return found
