"""The export as a user calls it: what it writes, and what it refuses, with the reason and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig

import fxprune
from fxprune.backends.exporter import ExportRequest
from fxprune.backends.gguf.exporter import Gguf
from fxprune.ir.errors import RequestError
from fxprune.runtime.consent import Consent
from fxprune.runtime.reporting import listening

from .changed import layers, narrowed, without
from .models import decoder, described, gguf, saved


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), decoder("llama", num_hidden_layers=3))


def test_a_free_form_becomes_a_file_with_widths_per_layer(llama: Path, tmp_path: Path) -> None:
    pruned = fxprune.apply(llama, "magnitude{ratio=0.34,layers=1:2}", out=tmp_path / "free")
    assert pruned.saved.form == "free"
    out = tmp_path / "model.gguf"
    report = fxprune.export(tmp_path / "free", out, format="gguf", trust_remote_code=True)
    assert (report.architecture, report.per_layer) == ("deci", True)
    assert "32 of 32 greedy tokens equal in llama.cpp" in report.summary
    assert report.bytes == out.stat().st_size
    assert json.loads(json.dumps(report.to_json()))["llama_cpp"]["texts_equal"] >= 3
    fields = gguf.GGUFReader(out).fields
    assert fields["deci.attention.head_count"].contents() == [6, 4, 6]
    assert fields["deci.attention.head_count_kv"].contents() == [3, 2, 3]
    assert len(set(fields["deci.feed_forward_length"].contents())) == 2
    with pytest.raises(RequestError, match="already exists"):
        fxprune.export(tmp_path / "free", out, format="gguf", trust_remote_code=True)
    padded = fxprune.export(
        tmp_path / "free", out, format="gguf", dtype="q8_0", pad=True, force=True, trust_remote_code=True
    )
    assert (padded.architecture, padded.per_layer) == ("llama", False)
    assert padded.zeros > 0
    assert padded.tensors.keys() == {"F16", "F32", "Q8_0"}
    assert "are no multiple of 32" in padded.summary


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("model.onnx", "an ONNX model"),
        ("onnx/model_q4.onnx", "an ONNX model"),
        ("model.gguf", "a model for llama.cpp"),
        ("model.pt2", "an exported program"),
        ("tf_model.h5", "weights for TensorFlow"),
    ],
)
@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_what_was_exported_is_not_exported_again(
    llama: Path, file: str, what: str, format: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    (made / file).parent.mkdir(parents=True)
    (made / file).touch()
    (made / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(RequestError, match=f"holds no weights in safetensors, but {what}: {file}") as caught:
        fxprune.export(made, tmp_path / "model.gguf", format=format)
    assert "give the model that it was made from" in caught.value.hint


def test_every_stage_is_told_with_its_number(llama: Path, tmp_path: Path) -> None:
    said: list[str] = []
    tensors: list[tuple[int, int | None]] = []
    with listening(lambda count: tensors.append((count.done, count.total))):
        fxprune.export(llama, tmp_path / "model.gguf", format="gguf{tokenizer=false}", progress=said.append)
    numbered = [text.rpartition(" (")[2] for text in said if text.endswith(")")]
    assert numbered == ["1 of 3)", "2 of 3)", "3 of 3)"]
    assert tensors[-1][0] == tensors[-1][1]
    assert len(tensors) > 10


def test_without_a_tokenizer_it_takes_ids_only(llama: Path, tmp_path: Path) -> None:
    report = fxprune.export(llama, tmp_path / "model.gguf", format="gguf{tokenizer=false}")
    assert "no tokenizer: it takes the ids 0 to 103" in report.summary
    assert "pip install" not in report.summary
    assert "tokenizer.ggml.tokens" not in gguf.GGUFReader(tmp_path / "model.gguf").fields


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

CONFIGURED = [
    ("llama", {}, "gguf{dtype=q4_k_m}", "dtype 'q4_k_m' is not written", "llama-quantize"),
    ("llama", {}, "gguf{dtype=int8}", "dtype 'int8' is not written", "choose from float32, float16, bfloat16, q8_0"),
    ("llama", {}, "gguf{pad=true}", "--pad has no effect", "leave --pad out"),
    ("gptj", {"n_embd": 96, "n_head": 6, "n_layer": 2}, "gguf", "is a 'gptj' model", "it knows cohere, falcon"),
    ("llama", {"hidden_act": "gelu"}, "gguf", "has hidden_act 'gelu'", "--format onnx"),
    ("llama", {"rope_parameters": DYNAMIC}, "gguf", "rotates by 'dynamic'", "--format onnx"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "gguf", "no_rope_layers 0 in layer 1", "drop no layers"),
    ("gemma2", {"query_pre_attn_scalar": 32}, "gguf", "query_pre_attn_scalar 32", "--format onnx"),
    ("gpt2", {"scale_attn_weights": False}, "gguf", "scale_attn_weights False", "--format onnx"),
]  # fmt: skip


@pytest.mark.parametrize("row", CONFIGURED, ids=[row[3] for row in CONFIGURED])
def test_a_configuration_that_is_refused(row: tuple[str, dict[str, Any], str, str, str], tmp_path: Path) -> None:
    model_type, changes, format, message, hint = row
    folder = saved(tmp_path / "model", decoder(model_type, **changes))
    with pytest.raises(RequestError, match=message) as caught:
        fxprune.export(folder, tmp_path / "out.gguf", format=format)
    assert hint in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def all_narrowed(model: Any) -> Any:
    for number in range(2):
        narrowed(model, number, 2, 20)
    return model


def with_bias(model: Any) -> Any:
    linear = layers(model)[1].self_attn.q_proj
    linear.bias = torch.nn.Parameter(torch.ones(linear.out_features))
    return model


def with_another_part(model: Any) -> Any:
    layers(model)[0].adapter = torch.nn.Linear(4, 4)
    return model


def with_smaller_values(model: Any) -> Any:
    attention = layers(model)[1].self_attn
    attention.v_proj = torch.nn.Linear(48, 3 * 8, bias=False)
    attention.o_proj = torch.nn.Linear(6 * 8, 48, bias=False)
    return model


SHAPED = [
    ("qwen2", all_narrowed, False, "4 heads of 16 in a width of 96, which llama.cpp's qwen2", "--pad writes zeros"),
    ("olmo", all_narrowed, False, "4 heads of 16 in a width of 96", "prune with heads=off"),
    ("olmo2", all_narrowed, True, "normalises across all heads together", "remove no heads"),
    ("qwen3", lambda model: narrowed(model, 1, 2, 20), False, "other widths in layer 1 than in layer 0", "--pad"),
    ("qwen3", lambda model: without(model, (0,), ()), False, "has no attention in layer 0", "--pad"),
    ("granite", lambda model: without(model, (), (1,)), False, "has no feed-forward network in layer 1", "--pad"),
    ("llama", lambda model: narrowed(with_bias(model), 0, 2, 20), False, "has biases, which llama.cpp's deci", "--pad"),
    ("llama", with_smaller_values, False, "heads of different sizes", "--format onnx"),
    ("llama", with_smaller_values, True, "heads of different sizes", "--format onnx"),
    ("llama", lambda model: without(model, (0, 1), ()), False, "no attention left", "--format onnx"),
    ("mistral", with_bias, False, r"a bias blk\.1\.attn_q\.bias \[96\]", "--format onnx"),
    ("qwen2", with_another_part, False, r"layers\.0\.adapter\.weight has no place", "--format onnx"),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "change", "padded", "message", "hint"), SHAPED, ids=[row[3] for row in SHAPED])
def test_shapes_that_are_refused(
    model_type: str, change: Callable[[Any], Any], padded: bool, message: str, hint: str
) -> None:
    model = change(decoder(model_type))
    with pytest.raises(RequestError, match=message) as caught:
        described(model, padded=padded)
    assert hint in caught.value.hint


def test_a_width_that_holds_no_heads_is_not_padded() -> None:
    model = all_narrowed(decoder("qwen2", hidden_size=92))
    with pytest.raises(RequestError, match="is 92 wide, which is no number of heads of 16") as caught:
        described(model, padded=True)
    assert "remove no channels of the residual stream" in caught.value.hint


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    widths = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=40, **widths)).save_pretrained(tmp_path / "bert")
    with pytest.raises(RequestError, match="is no causal language model"):
        fxprune.export(tmp_path / "bert", tmp_path / "out.gguf", format="gguf")


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    for entries in ({"auto_map": {"AutoModel": "theirs.Model"}}, {"fxprune": {"shapes": {}, "own_class": "a.B"}}):
        config = LlamaConfig(**entries)
        request = ExportRequest(
            name="theirs", source=tmp_path, out=tmp_path / "out.gguf", config=config, causal_lm=True, load=dict,
            inputs=dict, consent=Consent.nothing(tmp_path),
        )  # fmt: skip
        with pytest.raises(RequestError, match="theirs brings its own code"):
            Gguf().export(request)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RequestError, match="the format gguf needs gguf, which is not installed") as caught:
        fxprune.export(llama, tmp_path / "out.gguf", format="gguf")
    assert caught.value.hint == "pip install 'fxprune[gguf]'"


def test_without_llama_cpp_it_says_so(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.backends.gguf.exporter.has_llama_cpp", lambda: False)
    report = fxprune.export(llama, tmp_path / "out.gguf", format="gguf")
    assert "not run in llama.cpp" in report.summary
    assert not report.measured


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    decoder("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError) as caught:
        fxprune.export(tmp_path / "model", tmp_path / "out.gguf", format="gguf")
    where = f"{tmp_path / 'model'} has no readable tokenizer"
    assert caught.value.message == f"{where}: there is no tokenizer.json in it, and no other file that makes one"
    assert caught.value.hint == "export with --format 'gguf{tokenizer=false}'; the file then takes token ids only"


def test_a_full_disk_is_found_before_writing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(RequestError, match=r"has 1\.0 kB free, but .* are needed"):
        fxprune.export(llama, tmp_path / "out.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


def test_a_place_in_the_model_or_a_directory_is_refused(llama: Path, tmp_path: Path) -> None:
    for out, message in ((llama / "model.gguf", "would be a file of the model"), (tmp_path, "is a directory")):
        with pytest.raises(RequestError, match=message):
            fxprune.export(llama, out, format="gguf")
    assert not (llama / "model.gguf").exists()
