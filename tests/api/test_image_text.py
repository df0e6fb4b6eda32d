"""Models that make text from images and text: how they are called, and pruning their parts together or apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fxprune.api import apply, trace
from fxprune.api.model_call import ModelCall
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.tracer.example import example_inputs, trace_call, uncached

from ..families.image_text import IMAGE_TOKEN, tiny_model
from ..families.other import tiny_model as other_model

TOWERS = ("vision_tower", "multi_modal_projector", "language_model")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llava"
    tiny_model("llava").save_pretrained(folder)
    return folder


def changed(source: Path, out: Path) -> set[str]:
    """The parts of a model in which a tensor has another shape than before."""
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    return {part for part in TOWERS for name in before if part in name and before[name].shape != after[name].shape}


def test_both_towers_and_the_projector_are_pruned_together(llava: Path, tmp_path: Path) -> None:
    applied = apply(llava, "random{channels=true}", ratio=0.5, seed=1, out=tmp_path / "out")
    assert applied.parameters[1] < 0.5 * applied.parameters[0]
    assert changed(llava, tmp_path / "out") == set(TOWERS)
    checks = json.loads((tmp_path / "out" / "fxprune.json").read_text(encoding="utf-8"))["checks"]
    assert checks["logits_worst_difference"] <= 1e-5
    assert checks["cached_generate_equals_uncached"] is True


def test_or_apart(llava: Path, tmp_path: Path) -> None:
    apply(llava, "magnitude", ratio=0.5, within="language_model", out=tmp_path / "out")
    assert changed(llava, tmp_path / "out") == {"language_model"}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("languagemodel", "no module of the model is called 'languagemodel'"),
        ("embed_tokens", "no heads or kv_heads or query_heads or width group wholly within 'embed_tokens'"),
    ],
)
def test_a_part_without_groups_is_refused(part: str, said: str, llava: Path) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        apply(llava, "random", ratio=0.5, within=part, dry_run=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_inputs_come_from_a_file(suffix: str, llava: Path, tmp_path: Path) -> None:
    inputs = example_inputs(tiny_model("llava"))
    file = tmp_path / f"inputs{suffix}"
    if suffix == ".npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in inputs.items()})
    else:
        save_file(inputs, file)
    read = example_inputs(tiny_model("llava"), str(file))
    assert all(torch.equal(read[name], inputs[name]) for name in inputs)
    assert [value.name for value in trace(llava, example=str(file)).graph.inputs] == ["pixel_values"]


def test_a_file_that_cannot_be_read_is_named(llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "inputs.safetensors"
    assert main(["trace", str(llava), "--example", str(broken)]) == 2
    assert "there is no file" in capsys.readouterr().err
    broken.write_bytes(b"no tensors")
    assert main(["trace", str(llava), "--example", str(broken)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_text_alone_leaves_the_vision_tower_out(llava: Path) -> None:
    graph = trace(llava, example="input_ids=int64[3,5]").graph
    assert [value.name for value in graph.inputs] == ["input_ids"]
    used = {value for op in graph.ops for value in op.operands}
    assert not any("vision_tower" in p.name for p in graph.parameters if p.value in used)


def test_tokens_of_images_take_their_place_in_a_text() -> None:
    model = tiny_model("llava")
    given = example_inputs(model, "input_ids=int64[2,20],pixel_values=float32[2,3,32,32]")
    assert (given["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [16, 16]
    with pytest.raises(RequestError, match="a text of 9 tokens has no room for an image, which takes 16"):
        example_inputs(model, "input_ids=int64[2,9],pixel_values=float32[2,3,32,32]")
    with pytest.raises(RequestError, match="48 features of images cannot be shared among 5 texts"):
        example_inputs(model, "input_ids=int64[5,20],pixel_values=float32[3,3,32,32]")


def test_a_cache_that_goes_through_other_arguments_is_turned_off() -> None:
    model = tiny_model("internvl")
    assert uncached(model) == {"use_cache": False}
    inputs = {"input_ids": torch.randint(10, 100, (3, 5))}
    assert trace_call(model, inputs).outputs == ("logits",)
    assert uncached(other_model("vit")) == {}


def test_a_causal_language_model_with_images_takes_an_example() -> None:
    config = tiny_model("gemma3").config
    config.architectures = ["Gemma3ForConditionalGeneration"]
    assert ModelCall(config).language
    assert not ModelCall(config, "input_ids=int64[2,9],pixel_values=float32[2,3,32,32]").language


def test_values_of_pixels_may_decide_too() -> None:
    """Some models leave out images of zeros alone, and read the numbers for it."""
    model = tiny_model("idefics3")
    inputs = example_inputs(model)
    traced = trace_call(model, inputs)
    assert [value.name for value in traced.graph.inputs] == ["pixel_values"]
