"""Models that are loaded already, and texts that are lists of strings, in place of directories and files."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, ViTConfig, ViTModel

import fxprune
from fxprune import api
from fxprune.api.benchmarking import benchmark
from fxprune.api.benchmarking.timings import Conditions
from fxprune.api.inputs.seen_texts import record_of
from fxprune.api.sources import open_source
from fxprune.backends.artifact import RECORD
from fxprune.backends.exporter import ExportRequest
from fxprune.backends.huggingface import weight_source
from fxprune.backends.onnx.exporter import Onnx
from fxprune.ir.errors import RequestError
from fxprune.passes.score.taylor import Taylor

from ..checkpoints import LLAMA, contents
from .pruning.interrupted import LORA, TAYLOR, VOCABULARY, broken, write_source

ROWS = [" ".join(list(VOCABULARY)[i * i * k % 26] for i in range(40)) for k in range(1, 9)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("loaded") / "tiny")


@pytest.fixture(scope="module")
def rows(source: Path) -> Path:
    """The rows in a file."""
    file = source.parent / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return file


@pytest.fixture
def model(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source)


@pytest.fixture
def tokenizer(source: Path) -> Any:
    return AutoTokenizer.from_pretrained(source)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_loaded_model_gives_the_files_that_its_directory_gives(
    rows: Path, model: Any, tokenizer: Any, tmp_path: Path, temporary: Path
) -> None:
    source = rows.parent / "tiny"
    model.train()
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = copy.deepcopy(model.config.to_dict()), model.generation_config.to_dict()
    passes = f"{TAYLOR},{LORA}"
    torch.manual_seed(0)
    first = fxprune.apply(source, passes, ratio=0.5, calib=rows, data=rows, out=tmp_path / "a")
    torch.manual_seed(0)
    applied = fxprune.apply(
        model, passes, ratio=0.5, tokenizer=tokenizer, calib=ROWS, data=tuple(ROWS), out=tmp_path / "b"
    )
    own = RECORD, "README.md", "tokenizer_config.json"  # a tokenizer that was loaded from a directory says so there
    assert contents(tmp_path / "a", *own) == contents(tmp_path / "b", *own)
    assert applied.parameters == first.parameters
    assert (model.config.to_dict(), model.generation_config.to_dict()) == told
    assert model.training
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items())
    assert not list(temporary.glob("fxprune-*"))


def test_the_record_says_that_the_model_was_loaded_and_the_texts_were_lists(
    source: Path, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    fxprune.apply(model, TAYLOR, tokenizer=tokenizer, calib=ROWS, out=tmp_path / "out")
    text = (tmp_path / "out" / RECORD).read_text()
    record = json.loads(text)
    assert record["model"] == record["source"]["name"] == "tiny (loaded model)"
    assert [(entry["read_as"], entry["name"]) for entry in record["texts"]] == [("calibration", "calib")]
    assert str(source.parent) not in text
    assert tempfile.gettempdir() not in text


def test_a_model_without_a_place_of_origin_is_called_as_its_class() -> None:
    assert fxprune.trace(LlamaForCausalLM(LLAMA)).name == "LlamaForCausalLM (loaded model)"
    made = fxprune.apply(ViTModel(ViTConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, image_size=8,
        patch_size=4, num_attention_heads=2)), "magnitude{ratio=0.5}", dry_run=True)  # fmt: skip
    assert made.model == "ViTModel (loaded model)"
    assert made.kept < 1


def test_a_trace_reads_the_configuration_alone() -> None:
    with torch.device("meta"):
        bare = LlamaForCausalLM(LLAMA)
    assert fxprune.trace(bare).groups
    with pytest.raises(RequestError, match=r"holds no weights: .* is on the meta device"):
        fxprune.apply(bare, "magnitude", dry_run=True)


def test_a_run_on_a_loaded_model_and_lists_goes_on(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by the values of its weights and by the strings."""
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})

    def apply(rows: list[str] = ROWS, **options: Any) -> api.Applied:
        given = {"tokenizer": tokenizer, "calib": rows, "out": tmp_path / "out", "resume": True}
        return fxprune.apply(model, f"magnitude{{ratio=0.5}},{TAYLOR}", **given | options)

    broken(Taylor, "scores", apply)
    with pytest.raises(RequestError, match="--calib names another text now"):
        apply([*ROWS, "a b c"])
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(RequestError, match=r"model\.safetensors of the model has changed"):
        apply()
    with torch.no_grad():
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(model.config.name_or_path).state_dict())
    assert apply().resumed == "magnitude{ratio=0.5}"
    apply(out=tmp_path / "whole", resume=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_loaded_models_are_measured_on_lists(source: Path, rows: Path, model: Any, tokenizer: Any) -> None:
    options: dict[str, Any] = {"window": 16, "windows": 4}
    (one,) = fxprune.evaluate(source, rows, **options)
    (two,) = fxprune.evaluate(model, ROWS, tokenizer=tokenizer, **options)
    assert (two.perplexity, two.parameters, two.bytes) == (one.perplexity, one.parameters, one.bytes)
    both = fxprune.evaluate([source, model], ROWS, tokenizer=tokenizer, **options)
    assert [row.name for row in both] == [str(source), "tiny (loaded model)"]


def test_what_an_artifact_was_calibrated_on_goes_along_when_it_is_loaded(source: Path, tmp_path: Path) -> None:
    texts = [{"read_as": "calibration", "name": "a.txt", "pieces": 1, "passages": ""}]
    made = shutil.copytree(source, tmp_path / "made")
    (made / RECORD).write_text(json.dumps({"texts": texts, "parameters": {}}))
    with open_source(AutoModelForCausalLM.from_pretrained(made)) as opened:
        assert record_of(opened.directory) == {"texts": texts}
    with open_source(AutoModelForCausalLM.from_pretrained(source)) as opened:
        assert record_of(opened.directory) == {}


def test_a_loaded_model_is_exported_from_a_directory_that_goes(
    model: Any, tokenizer: Any, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(_: Onnx, request: ExportRequest) -> set[str]:
        assert load_file(request.source / "model.safetensors")
        return {path.name for path in request.source.iterdir()}

    monkeypatch.setattr(Onnx, "export", exported)
    made: Any = fxprune.export(model, tmp_path / "out", tokenizer=tokenizer)
    assert made >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not list(temporary.iterdir())


def test_a_loaded_model_is_timed_from_a_directory_that_goes(
    model: Any, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def worker(job: benchmark.TimingJob, _conditions: Conditions, _progress: Any) -> None:
        assert (job.consent.directory / "model.safetensors").is_file()
        raise Stop(job.name)

    monkeypatch.setattr(benchmark, "_worker", worker)
    with pytest.raises(Stop, match=r"tiny \(loaded model\)"):
        fxprune.bench([model])
    assert not list(temporary.glob("fxprune-loaded*"))


class OwnLlama(LlamaForCausalLM):
    """Would come back as another class."""


def swapped() -> Any:
    model = LlamaForCausalLM(LLAMA)
    model.model.layers[0].mlp.act_fn = nn.GELU()
    return model


def without_a_part() -> Any:
    model = LlamaForCausalLM(LLAMA)
    model.model.layers = model.model.layers[:1]
    return model


def quantised() -> Any:
    model = LlamaForCausalLM(copy.deepcopy(LLAMA))
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def adapted() -> Any:
    from peft import LoraConfig

    model = LlamaForCausalLM(copy.deepcopy(LLAMA))
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    return model


REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: OwnLlama(LLAMA), "OwnLlama is no class of transformers", "fxprune.prune_module"),
    (swapped, "is not what its configuration describes: model.layers.0.mlp.act_fn is a GELU", "prune_module"),
    (without_a_part, "is not what its configuration describes: it has no model.layers.1", "prune_module"),
    (quantised, "LlamaForCausalLM (loaded model) is quantised", "prune the original weights"),
    (adapted, "LlamaForCausalLM (loaded model) has adapters", "merge them"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[1])
def test_a_model_that_its_files_would_not_give_back_is_refused(
    row: tuple[Callable[[], Any], str, str], temporary: Path
) -> None:
    make, message, hint = row
    with pytest.raises(RequestError) as caught:
        fxprune.apply(make(), "magnitude", dry_run=True)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert not list(temporary.iterdir())


def test_a_tokenizer_is_asked_for_where_text_is_read(model: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"tiny \(loaded model\) came without a tokenizer") as caught:
        fxprune.apply(model, TAYLOR, calib=ROWS, out=tmp_path / "out")
    assert "tokenizer=" in caught.value.hint


def test_a_full_disk_is_named_before_anything_is_written(
    model: Any, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxprune.tracer import loaded

    monkeypatch.setattr(loaded.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    with pytest.raises(RequestError, match=r"a copy of the loaded model takes 0\.00 GB") as caught:
        fxprune.apply(model, "magnitude", dry_run=True)
    assert "TMPDIR" in caught.value.hint
    assert not list(temporary.iterdir())
