"""Models that are no causal language models on the command line: what they are called with, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from fxprune.api import apply, trace
from fxprune.api.model_call import ModelCall
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.couple.computed_constants import freeze_fixed
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.calls import calls
from fxprune.tracer.example import example_inputs, trace_call

from ..families.other import ROWS, tiny_model


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vit"
    tiny_model("vit").save_pretrained(folder)
    return folder


def loss(module: torch.nn.Module) -> torch.Tensor:
    return module(pixel_values=torch.ones(2, 3, 32, 32)).logits.square().mean()


def test_inputs_are_made_from_the_configuration() -> None:
    shapes = {
        name: {key: tuple(tensor.shape) for key, tensor in example_inputs(tiny_model(name)).items()}
        for name in ("vit", "bert", "t5", "clip", "whisper", "videomae")
    }
    assert shapes["vit"] == {"pixel_values": (5, 3, 32, 32)}
    assert shapes["bert"] == {"input_ids": (3, 5)}
    assert shapes["t5"] == {"input_ids": (3, 5), "decoder_input_ids": (3, 7)}
    assert shapes["clip"].keys() == {"input_ids", "pixel_values"}
    assert shapes["whisper"]["input_features"][1:] == (10, 28)
    assert shapes["videomae"]["pixel_values"][1:] == (4, 3, 32, 32)


def test_token_ids_are_random_and_masks_are_ones() -> None:
    model = tiny_model("bert")
    text = "input_ids=int64[2,9],attention_mask=int64[2,9]"
    inputs = example_inputs(model, text)
    assert inputs["attention_mask"].eq(1).all()
    assert inputs["input_ids"].unique().numel() > 9
    assert inputs["input_ids"].min() >= 3
    assert torch.equal(inputs["input_ids"], example_inputs(model, text)["input_ids"])


def test_inner_states_do_not_count_beside_results() -> None:
    model = tiny_model("t5")
    traced = trace_call(model, example_inputs(model))
    assert traced.outputs == ("logits",)
    assert len(traced.graph.outputs) == 1
    base = transformers.BertModel(transformers.BertConfig.from_dict(tiny_model("bert").config.to_dict())).eval()
    assert trace_call(base, example_inputs(base)).outputs == ("last_hidden_state", "pooler_output")
    assert {"last_hidden_state", "pooler_output"} <= set(calls()["inner"])


def test_a_vision_model_is_traced_from_its_config_alone(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    assert "heads" in {group.kind.value for group in trace(tmp_path).groups}


def test_a_loss_scores_a_vision_model(vit: Path) -> None:
    applied = apply(vit, "taylor", ratio=0.25, loss=loss, dry_run=True)
    assert {change.kind for change in applied.groups} == {"heads", "width"}


def test_the_command_line_writes_a_hugging_face_model(vit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["apply", str(vit), "--pass", "magnitude", "--ratio", "0.25", "--out", str(out)]
    assert main([*command, "--example", "pixel_values=float32[2,3,32,32]", "--json"]) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    record = json.loads((out / "fxprune.json").read_text())
    assert record["form"] == "uniform"
    assert record["checks"]["loaded_by"] == "transformers.AutoModelForImageClassification"
    assert record["checks"]["logits_worst_difference"] <= 1e-5
    model = transformers.AutoModelForImageClassification.from_pretrained(out)
    assert model.config.intermediate_size == 30


REFUSED: list[tuple[str, str, str]] = [
    ("--pass taylor", "taylor needs calibration data for ViTForImageClassification", "--loss package.module:function"),
    ("--pass wanda", "wanda needs calibration data for ViTForImageClassification", "give --calib DATA: a folder"),
    ("--pass drop{layers=1}", "pass 'drop' needs a causal language model", "random, magnitude, taylor"),
    ("--pass generate,random", "pass 'generate' needs a causal language model", "random, magnitude, taylor"),
    ("--pass magnitude,lora", "lora has no data to train on", "give --data DATA: a folder of images"),
    ("--pass wanda --calib x.txt", "there is no text file 'x.txt'", "check the path"),
    ("--pass random --example float32[2,3,32,32]", "has no input name", "pixel_values=float32[2,3,"),
    ("--pass random --example pixels=float32[2,3]", "ViTForImageClassification takes no 'pixels'", "pixel_values"),
    ("--pass random --loss f", "'f' is not of the form package.module:callable", "package.module:callable"),
]


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(
    row: tuple[str, str, str], vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message, hint = row
    assert main(["apply", str(vit), *options.split(), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in " ".join(errors.split())
    assert hint in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("known", [None, "float32[samples,width_that_no_configuration_has]"])
def test_an_input_that_nothing_describes_is_asked_for(known: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("vit")
    if known is None:
        monkeypatch.delitem(calls()["inputs"], "pixel_values")
    else:
        monkeypatch.setitem(calls()["inputs"], "pixel_values", known)
    message = "the shape of input 'pixel_values' of ViTForImageClassification is not known"
    with pytest.raises(RequestError, match=message) as caught:
        example_inputs(model)
    assert "--example, such as 'pixel_values=float32" in caught.value.hint


def test_the_table_describes_no_input_twice() -> None:
    known = calls()
    assert not {
        name for name, inputs in known["inputs_of"].items() for key in inputs if known["inputs"].get(key) == inputs[key]
    }
    assert {"input_ids", "pixel_values"} <= known["inputs"].keys()
    assert set(ROWS) >= {"whisper", "timesformer"}


def test_torchs_own_attention_keeps_its_heads() -> None:
    model = tiny_model("siglip")
    coupling = couple(trace_call(model, example_inputs(model)).graph)
    held = {g.name for g in coupling.prunable if any("head.attention.in_proj" in tensor for tensor in g.tensors)}
    assert held
    frozen = freeze_fixed(coupling, model)
    assert {g.name for g in coupling.prunable} - {g.name for g in frozen.prunable} >= held
    assert all("torch.nn.MultiheadAttention" in (frozen.groups[name].frozen or "") for name in held)
    vit = tiny_model("vit")
    whole = couple(trace_call(vit, example_inputs(vit)).graph)
    assert freeze_fixed(whole, vit) is whole


def test_a_model_that_does_not_run_is_said_not_to() -> None:
    model = tiny_model("vit")
    model.config.architectures = ["ViTForImageClassification"]
    model_call = ModelCall(model.config)
    traced = model_call.trace(model)
    model_call.inputs["pixel_values"] = torch.ones(1, 3, 16, 16)
    with pytest.raises(FxpruneError, match="ViTForImageClassification does not run: ValueError: Input image size"):
        model_call.run(model, traced)


def test_code_of_its_own_does_not_make_an_encoder_decoder_a_language_model() -> None:
    """The free form of a model whose task has no Auto class of its own there is found by another one."""
    config = tiny_model("whisper").config
    config.auto_map = {"AutoModelForCausalLM": "modeling_fxprune.Free"}
    config.architectures = ["WhisperForConditionalGeneration"]
    assert not ModelCall(config, None).language
    config.architectures = ["WhisperForCausalLM"]
    assert ModelCall(config, None).language
    config.architectures = ["SomebodysOwnForCausalLM"]
    assert ModelCall(config, None).language
