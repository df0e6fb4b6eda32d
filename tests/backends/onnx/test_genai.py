"""ONNX directories in onnxruntime-genai: the same text as torch writes, its end, and the configuration it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.backends.onnx.genai import write_genai_config
from fxprune.backends.onnx.rounding import GROWTH
from fxprune.backends.onnx.runtime import OnnxDecoder

from .onnx_models import ROUNDED, Decoders

NEW_TOKENS = 64


def genai_tokens(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy text by onnxruntime-genai; it stops at no end token before ``count``."""
    genai = pytest.importorskip("onnxruntime_genai", reason="comes with the extra fxprune[genai]")
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    length = len(prompt) + count
    parameters.set_search_options(max_length=length, min_length=length)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def ending_in(folder: Path, target: Path, token: int) -> Path:
    """A copy with another end token; one that no text here holds, where its end is not what is compared."""
    shutil.copytree(folder, target)
    config = json.loads((target / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = token
    (target / "genai_config.json").write_text(json.dumps(config))
    return target


def unused(text: list[int]) -> int:
    return min(set(range(97)) - set(text))


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("name", ["tied", "free"])
def test_genai_writes_what_torch_writes(decoders: Decoders, name: str, tmp_path: Path) -> None:
    for prompt in ([5, 17, 3, 9, 80], [11]):
        text = decoders.torch(name).generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
        expected = text[0, len(prompt) :].tolist()
        assert len(expected) == NEW_TOKENS
        folder = ending_in(decoders.export(name).path, tmp_path / str(len(prompt)), unused(expected))
        assert genai_tokens(folder, prompt, NEW_TOKENS) == expected


@pytest.mark.parametrize("dtype", ROUNDED)
def test_genai_runs_rounded_graphs(decoders: Decoders, dtype: str, tmp_path: Path) -> None:
    prompt = [5, 17, 3, 9, 80]
    made = decoders.export("free", dtype).path
    expected = OnnxDecoder(made).generate(prompt, 40)
    assert genai_tokens(ending_in(made, tmp_path / "copy", unused(expected)), prompt, 40) == expected


def test_genai_stops_at_the_end_token(decoders: Decoders, tmp_path: Path) -> None:
    made = decoders.export("tied").path
    assert json.loads((made / "genai_config.json").read_text())["model"]["eos_token_id"] == 2
    text = OnnxDecoder(made).generate([5, 17, 3], 40)
    end = text[10]
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(ending_in(made, tmp_path / "copy", end)))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=43)
    generator = genai.Generator(model, parameters)
    generator.append_tokens([5, 17, 3])
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0)[3:].tolist() == text[: text.index(end)]


@pytest.mark.parametrize(
    ("config", "generation", "names", "optimize", "expected"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": [3, 4]}, ("position_ids",), "cpu", {"eos_token_id": [3, 4]}),
        ({"bos_token_id": None, "pad_token_id": 0}, None, (), "none", {"pad_token_id": 0}),
        ({"n_positions": 32, "n_head": 4, "n_embd": 16}, None, (), "cuda", {"context_length": 32}),
        ({"text_config": {"max_position_embeddings": 8, "vocab_size": 9}}, None, (), "cpu", {"context_length": 8}),
    ],
)
def test_genai_config_is_filled_from_the_models(
    *,
    tmp_path: Path,
    config: dict[str, Any],
    generation: dict[str, Any] | None,
    names: tuple[str, ...],
    optimize: str,
    expected: dict[str, Any],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7, **config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    inputs: dict[str, list[int | str]] = {"input_ids": ["b", "s"], "attention_mask": ["b", "t"]}
    inputs |= {name: ["b", "s"] for name in names}
    inputs |= {f"past_key_values.{n}.{part}": ["b", 2, "p", 8] for n in range(3) for part in ("key", "value")}
    write_genai_config(tmp_path, "model.onnx", inputs, optimize)
    written = json.loads((tmp_path / "genai_config.json").read_text())
    model, decoder = written["model"], written["model"]["decoder"]
    assert {name: model[name] for name in expected} == expected
    assert {name for name in model if name.endswith("_token_id")} == {name for name in expected if "token" in name}
    assert model["vocab_size"] == config.get("text_config", {"vocab_size": 7})["vocab_size"]
    assert written["search"]["max_length"] == model["context_length"]
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (3, 2, 8)
    assert decoder["num_attention_heads"] == config.get("n_head", 2)
    assert decoder["hidden_size"] == 16
    assert ("position_ids" in decoder["inputs"]) == bool(names)
    assert decoder["session_options"]["provider_options"] == ([{"cuda": {}}] if optimize == "cuda" else [])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen3", "gpt-neox", "phi3", "falcon"])
def test_genai_runs_every_family(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.option.markexpr:
        pytest.skip("half a minute each: run with -m slow")
    found = Decoders(tmp_path)
    prompt = [5, 17, 3, 9, 80]
    expected = found.torch(family).generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
    text = expected[0, len(prompt) :].tolist()
    folder = ending_in(found.export(family).path, tmp_path / "copy", unused(text))
    assert genai_tokens(folder, prompt, 40) == text
    for dtype in ROUNDED:
        assert max(found.export(family, dtype).growth.values()) <= GROWTH[dtype]
