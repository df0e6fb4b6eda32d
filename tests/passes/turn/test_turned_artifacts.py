"""Artifacts whose values are narrower than their heads: loaded, pruned further, exported; and what refuses them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from fxprune import api
from fxprune.api.pruning import model_run
from fxprune.backends.huggingface.load import load
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.recover.lora import Lora
from fxprune.runtime.model.held_values import narrow_values
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference
from fxprune.tracer.export import trace_causal_lm

from ...checkpoints import contents
from ...corpora import RepeatedTokens
from ...decoders import special_tokens
from ...states import state_of
from ..drop.test_drop_artifacts import read_windows

CONFIG = transformers.LlamaConfig(
    hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=64, **special_tokens(47),
)  # fmt: skip
SMALL = "samples=4,length=8"
PASSES = f"turn{{{SMALL}}},obs{{values=true,by=global,target=params:0.85,tolerance=0.03,{SMALL}}},compensate{{{SMALL}}}"
PLAIN = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "fxprune" not in sys.modules
torch.save(model(input_ids=torch.arange(12).view(2, 6)).logits, sys.argv[2])
"""


@dataclass(frozen=True)
class Made:
    source: Path
    out: Path
    applied: api.Applied


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("turned")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run.ModelRun, "read_texts", read_windows)
        applied = api.apply(folder / "source", PASSES, out=folder / "out")
    return Made(folder / "source", folder / "out", applied)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(12).view(2, 6)).logits
    return found


def test_plain_transformers_computes_what_fxprune_computes(made: Made, tmp_path: Path) -> None:
    assert made.applied.saved is not None
    assert made.applied.saved.form == "free"
    narrow = {path: width for path, (_, width) in narrow_values(load(made.out)).items()}
    assert narrow
    assert set(narrow.values()) == {16}
    subprocess.run([sys.executable, "-c", PLAIN, str(made.out), str(tmp_path / "logits")], check=True)
    plain = torch.load(tmp_path / "logits", weights_only=True)
    assert relative_difference(plain, logits(load(made.out))) <= LOGITS_TOLERANCE
    shapes = {name: t.shape[0] for name, t in load(made.out).state_dict().items() if ".v_proj" in name}
    assert min(shapes.values()) < 32


def test_more_goes_of_heads_and_of_widths_later(made: Made, tmp_path: Path) -> None:
    again = tmp_path / "again"
    api.apply(made.out, "magnitude", ratio=0.5, out=again)
    model = load(again)
    assert model.model.layers[0].self_attn.k_proj.weight.shape[0] == 16
    assert narrow_values(model).keys() == narrow_values(load(made.out)).keys()
    assert trace_causal_lm(model).graph.ops


def test_an_attention_that_held_values_is_taken_out(made: Made, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run.ModelRun, "read_texts", read_windows)
        api.apply(made.out, f"drop{{sub_blocks=1,of=attention,{SMALL}}}", out=tmp_path / "again")
    entry = json.loads((tmp_path / "again" / "config.json").read_text())["fxprune"]
    (gone,) = {path for path in entry["absent"] if path.endswith("self_attn")}
    assert not [path for path in (*entry["values"], *entry["attributes"]) if path.startswith(f"{gone}.")]
    assert logits(load(tmp_path / "again")).isfinite().all()


def test_onnx_computes_the_same(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    api.export(made.out, tmp_path / "onnx")  # it compares prefill, decoding and padding with torch itself
    assert (tmp_path / "onnx" / "model.onnx").is_file()


@pytest.mark.parametrize("padded", [False, True])
def test_llama_cpp_has_one_width_of_values(made: Made, tmp_path: Path, padded: bool) -> None:
    pytest.importorskip("gguf")
    out = tmp_path / "model.gguf"
    with pytest.raises(FxpruneError, match="heads of different sizes"):
        api.export(made.out, out, format="gguf{tokenizer=false,pad=true}" if padded else "gguf{tokenizer=false}")
    assert not out.exists()


def test_the_same_units_of_another_checkpoint_are_refused(made: Made, tmp_path: Path) -> None:
    before = contents(made.out)
    with pytest.raises(FxpruneError, match="turned"):
        api.apply(made.source, plan=made.out, out=tmp_path / "planned")
    assert not (tmp_path / "planned").exists()
    assert contents(made.out) == before


def test_a_turn_alone_is_written_as_a_plain_model(made: Made, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run.ModelRun, "read_texts", read_windows)
        applied = api.apply(made.source, f"turn{{{SMALL}}}", out=tmp_path / "out")
    assert applied.saved is not None
    assert applied.saved.form == "uniform"
    dense = transformers.AutoModelForCausalLM.from_pretrained(made.source)
    turned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not dense.model.layers[0].self_attn.v_proj.weight.equal(turned.model.layers[0].self_attn.v_proj.weight)
    assert relative_difference(logits(turned), logits(dense)) <= LOGITS_TOLERANCE


def test_adapters_are_as_narrow_as_the_values(made: Made) -> None:
    pytest.importorskip("peft")
    model, before = load(made.out), load(made.out)
    with pytest.raises(RequestError, match="keep_adapter has no use here"):
        Lora(steps=2, keep_adapter=True).run(state_of(None, model, recovery=RepeatedTokens()))
    Lora(steps=2, batch=2, length=8, lr=0.01).run(state_of(None, model, recovery=RepeatedTokens()))
    assert narrow_values(before) == narrow_values(model)
    shapes = {name: tensor.shape for name, tensor in before.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    names = [f"model.layers.{layer}.self_attn.v_proj.weight" for layer in range(3)]
    assert not any(before.get_parameter(name).equal(model.get_parameter(name)) for name in names)
