"""JSON of the wrong type, wherever it is read: an error of fxprune with its file, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

import fxprune
from fxprune.api.pruning.score_file import SCORES_ENTRY, open_scores
from fxprune.backends.artifact import RECORD, read_plan, read_record
from fxprune.backends.huggingface.load import load as load_artifact
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import all_passes
from fxprune.runtime.json_object import DEEPEST, parse_json
from fxprune.tracer.fitting import check_fit
from fxprune.tracer.model import load_config, load_tokenizer, resolve

from .strangers import Damage, config, content, copied, entry, write_model

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-"

DEEP = "[" * 100_000 + "]" * 100_000
LESS_DEEP = "[" * 2 * DEEPEST + "]" * 2 * DEEPEST
LONG = "9" * 10_000
NO_JSON: dict[str, str | bytes] = {
    "empty": "", "null": "null", "a list": "[]", "a text": '"x"', "a number": "1", "not closed": '{"a": ',
    "nested deep": f'{{"model_type": {DEEP}}}', "nested less deep": f'{{"model_type": "llama", "x": {LESS_DEEP}}}',
    "a number of 10,000 digits": f'{{"model_type": "llama", "x": {LONG}}}',
    "half of a surrogate pair": '{"model_type": "llama", "x": "\\ud800"}',
    "half of a pair as a key": '{"model_type": "llama", "\\udfff": 1}',
    "a mark of byte order": b'\xef\xbb\xbf{"model_type": "llama"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "bytes": b"\xff\x00\xfe",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("json") / "model")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("json") / "sharded", shards=True)


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in the free form, made on a text that its record names."""
    out = tmp_path_factory.mktemp("json") / "artifact"
    passes = "taylor{samples=2,length=8}"
    fxprune.apply(model, passes, ratio=0.5, calib=model.parent / "text.txt", form="free", out=out)
    return out


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("name", ["config.json", INDEX, RECORD])
def test_a_file_that_holds_no_json_object(sharded: Path, tmp_path: Path, name: str, data: str | bytes) -> None:
    folder = copied(sharded, tmp_path / "model")
    content(name, data)(folder)
    with pytest.raises(RequestError, match=rf"{name}.* is (damaged|no)") as caught:
        read_record(folder) if name == RECORD else check_fit(resolve(folder))
    assert caught.value.hint


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": [1]}, r"'architectures\.0': input should be a valid string, not 1"),
    ({"architectures": "LlamaForCausalLM"}, "'architectures': input should be a valid list"),
    ({"quantization_config": "x"}, "'quantization_config': input should be a valid dictionary, not 'x'"),
    ({"fxprune": {"shapes": {"a": "b"}, "attributes": {}}}, "'fxprune.shapes.a': input should be a valid list"),
    ({"fxprune": []}, "'fxprune': input should be a valid dictionary"),
    # Neighbours.
    ({"model_type": ["llama"]}, "'model_type': input should be a valid string"),
    ({"model_type": None}, "names no model_type"),
    ({"auto_map": "own.Own"}, "'auto_map': input should be a valid dictionary"),
    ({"auto_map": {"AutoModel": 1}}, "'auto_map.AutoModel.str': input should be a valid string"),
    ({"fxprune": {}}, "'fxprune.shapes': field required"),
    ({"fxprune": {"shapes": {"a": [2**70, True]}, "attributes": {}}}, r"'fxprune.shapes.a.1': input should be"),
    ({"fxprune": {"shapes": {}, "attributes": {"m": {"w": 3}}}}, "'fxprune.attributes.m.w': input should be"),
    ({"rope_parameters": "x"}, "is not a valid model configuration"),
    ({"dtype": 3}, r"'dtype\.str': input should be a valid string"),
    ({"hidden_act": {}}, "is not a valid model configuration"),
    ({"pad_token_id": "x"}, "is not a valid model configuration"),
    ({"id2label": "x"}, "is not a valid model configuration"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=[str(row[0]) for row in CONFIGS])
def test_an_entry_of_a_configuration(model: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = copied(model, tmp_path / "model")
    config(**changes)(folder)
    with pytest.raises(RequestError, match=message) as caught:
        load_config(resolve(folder))
    assert caught.value.hint


INDEXES: list[tuple[Any, str]] = [
    ({"weight_map": {"a": 1}}, "'weight_map.a': input should be a valid string"),
    ({"weight_map": {}}, "lists no tensors"),
    ({}, "'weight_map': field required"),
    ({"weight_map": []}, "'weight_map': input should be a valid dictionary"),
    # Neighbours.
    ({"weight_map": {"a": None}}, "'weight_map.a': input should be a valid string"),
    ({"weight_map": {"a": "../../etc/passwd"}}, "'../../etc/passwd', which is no name of a weight file beside it"),
    ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd', which is no name of a weight file beside it"),
    ({"weight_map": {"a": ".."}}, r"'\.\.', which is no name of a weight file beside it"),
    ({"weight_map": {"a": ""}}, "'', which is no name of a weight file beside it"),
    ({"weight_map": {"a": "sub/model.safetensors"}}, "which is no name of a weight file beside it"),
    ({"weight_map": {"a": "..\\model.safetensors"}}, "which is no name of a weight file beside it"),
    ({"weight_map": {"a": "model\0.safetensors"}}, "which is no name of a weight file beside it"),
    ({"weight_map": {"a": "model\x1b[2J.safetensors"}}, "which is no name of a weight file beside it"),
    ({"weight_map": {"a": "x" * 5000 + ".bin"}}, "a file with a name of 5004 characters"),
]


@pytest.mark.parametrize(("data", "message"), INDEXES, ids=[str(row[0])[:60] for row in INDEXES])
def test_an_index(sharded: Path, tmp_path: Path, data: Any, message: str) -> None:
    folder = copied(sharded, tmp_path / "model")
    content(INDEX, json.dumps(data))(folder)
    with pytest.raises(RequestError, match=message) as caught:
        resolve(folder)
    assert caught.value.message.isprintable()


def test_a_tensor_in_two_files(sharded: Path, tmp_path: Path) -> None:
    folder = copied(sharded, tmp_path / "model")
    first, second, *_ = sorted(folder.glob(f"{SHARD[:-11]}*.safetensors"))
    shutil.copyfile(first, second)
    with pytest.raises(RequestError, match=r"does not hold it|holds it too"):
        resolve(folder)


RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"texts": [1]}, r"'texts\.0': input should be a valid dictionary"),
    ({"texts": [{"name": "a"}]}, r"'texts\.0\.read_as': field required"),
    ({"texts": [{"name": "a", "read_as": "b", "pieces": 1, "passages": "%%"}]}, "of a text that was read is damaged"),
    ({"texts": "x"}, "'texts': input should be a valid list"),
]


@pytest.mark.parametrize(("changes", "message"), RECORDS, ids=[str(row[0]) for row in RECORDS])
def test_the_texts_in_a_record(written: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = copied(written, tmp_path / "model")
    entry(RECORD, **changes)(folder)
    with pytest.raises(RequestError, match=message):
        fxprune.evaluate(folder, ["a b c"] * 40, window=8, trust_remote_code=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": [1, 2]}, "'parameters': input should be a valid dictionary"),
        ({"parameters": {"before": "x"}}, "'parameters.before': input should be a valid integer"),
        ({"source": "x"}, "'source': input should be a valid dictionary"),
        ({"source": {"name": "model", "sha256": ["x"]}}, "'source.sha256': input should be a valid dictionary"),
        ({"passes": {"drop": {"sub_blocks": [1]}}}, r"'passes\.drop\.sub_blocks\.0': input should be a valid dict"),
        ({"pipeline": {}}, "'pipeline': input should be a valid string"),
    ],
    ids=str,
)
def test_the_record_beside_a_plan(
    written: Path, model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copied(written, tmp_path / "artifact")
    entry(RECORD, **changes)(folder)
    with pytest.raises(RequestError, match=message):
        fxprune.apply(model, plan=folder, dry_run=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"shapes": {"model.norm.weight": [5]}, "attributes": {}},
        {"shapes": {"nowhere.weight": [5]}, "attributes": {}},
        {"shapes": {"model": [5]}, "attributes": {}},
        {"shapes": {"__class__": [5]}, "attributes": {}},
        {"shapes": {"model.norm.weight": [2**70]}, "attributes": {}},
        {"shapes": {"model.norm.weight": [-1]}, "attributes": {}},
        {"shapes": {}, "attributes": {"model.nowhere": {"width": [1, 2]}}},
        {"shapes": {}, "attributes": {"model": {"forward": [1, 2]}}},
        {"shapes": {}, "attributes": {"": {"__class__": [1, 2]}}},
        {"shapes": {}, "attributes": {}, "absent": {"model.layers.0": {"outputs": -3}}},
        {"shapes": {}, "attributes": {}, "absent": {"": {}}},
    ],
    ids=str,
)
def test_the_entry_of_the_free_form(written: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copied(written, tmp_path / "artifact")
    config(fxprune=changes)(folder)
    with pytest.raises(FxpruneError, match=r"cannot load|has (missing|unexpected)|config\.json (makes|changes|says)"):
        load_artifact(folder)


GENERATION = ["[]", "", "null", DEEP, f'{{"max_length": {LONG}}}', '{"bos_token_id": "\\ud800"}']


@pytest.mark.parametrize("data", GENERATION, ids=[text[:40] for text in GENERATION])
def test_a_generation_configuration(model: Path, tmp_path: Path, data: str) -> None:
    folder = copied(model, tmp_path / "model")
    content("generation_config.json", data)(folder)
    with pytest.raises(RequestError, match=r"generation_config.json is damaged"):
        fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer(model: Path, tmp_path: Path, name: str, data: str | bytes) -> None:
    folder = copied(model, tmp_path / "model")
    content(name, data)(folder)
    with pytest.raises(RequestError, match=rf"{re.escape(name)} is damaged") as caught:
        load_tokenizer(resolve(folder))
    assert caught.value.hint == "copy or download the tokenizer again"


@pytest.mark.parametrize("extra", ['"x": ' + LESS_DEEP, '"x": "\\ud800"'], ids=["nested", "half of a pair"])
def test_what_is_copied_with_a_model(model: Path, tmp_path: Path, extra: str) -> None:
    folder = copied(model, tmp_path / "model")
    text = (folder / "tokenizer_config.json").read_text(encoding="utf-8").lstrip("{")
    content("tokenizer_config.json", f'{{"auto_map": {{"AutoTokenizer": "own.Own"}}, {extra}, {text}')(folder)
    with pytest.raises(RequestError, match=r"tokenizer_config.json is damaged"):
        fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def scores(path: Path, record: Any, **arrays: Any) -> Path:
    save_file(
        arrays or {"g": np.zeros(3)}, path, {SCORES_ENTRY: record if isinstance(record, str) else json.dumps(record)}
    )
    return path


RECORD_OF_SCORES = {"version": 1, "pass": "taylor", "options": {}, "model": "x", "read": []}

SCORES: list[tuple[Any, dict[str, Any], str]] = [
    ("[]", {}, "format version None"),
    (DEEP, {}, "nested too deep"),
    ("{", {}, "is damaged"),
    ({"version": 1}, {}, "'pass': field required"),
    (RECORD_OF_SCORES | {"version": "1"}, {}, "format version 1, this fxprune reads 1"),
    (RECORD_OF_SCORES | {"read": [{}]}, {}, r"'read\.0\.length': field required"),
    (RECORD_OF_SCORES | {"options": []}, {}, "'options': input should be a valid dictionary"),
    (RECORD_OF_SCORES, {"g": np.zeros(3, np.int8)}, "'g' is int8 of shape"),
    (RECORD_OF_SCORES, {"g": np.zeros((3, 3))}, "which are no scores"),
    (RECORD_OF_SCORES, {"search g": np.zeros((1, 3))}, "which are no scores"),
]


@pytest.mark.parametrize(("record", "arrays", "message"), SCORES, ids=[str(row[0])[:30] + row[2] for row in SCORES])
def test_a_file_of_scores(tmp_path: Path, record: Any, arrays: dict[str, Any], message: str) -> None:
    file = scores(tmp_path / "scores.safetensors", record, **arrays)
    with pytest.raises(RequestError, match=message):
        open_scores(file, parse_pipeline("taylor", all_passes(), {"ratio": 0.5}), texts=True)


PLANS: list[tuple[str, Any, str]] = [
    ("w:0", np.zeros(2, np.float32), "its entry 'w:0' is float32"),
    ("w:0", np.array([1, 1], np.int64), "not ascending"),
    ("w:0", np.array([-1, 1], np.int64), "negative"),
    ("w:9", np.array([1], np.int64), "which the model does not have"),
    ("w:" + "9" * 5000, np.array([1], np.int64), r"its entry 'w:9{298}\.\.\.' is int64"),
    ("w:00", np.array([1], np.int64), "is not a plan: its entry 'w:00'"),
    ("w:٣", np.array([1], np.int64), "is not a plan: its entry 'w:٣'"),
    ("w:²", np.array([1], np.int64), "is not a plan"),
    ("\x1b[31mw:x", np.array([1], np.int64), r"its entry '\\x1b\[31mw:x' is"),
]


@pytest.mark.parametrize(("key", "kept", "message"), PLANS, ids=[ascii(row[0]) + row[2] for row in PLANS])
def test_a_plan(model: Path, tmp_path: Path, key: str, kept: Any, message: str) -> None:
    save_file({key: kept}, tmp_path / "plan.safetensors")
    with pytest.raises(FxpruneError, match=message):
        fxprune.apply(model, plan=tmp_path / "plan.safetensors", dry_run=True)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.complex64, torch.uint64]
)
def test_a_plan_of_other_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    save_tensors({"w:0": torch.zeros(3, dtype=dtype)}, tmp_path / "plan.safetensors")
    with pytest.raises(RequestError, match=r"is (not a plan|damaged): ") as caught:
        read_plan(tmp_path / "plan.safetensors")
    assert caught.value.hint


ROWS: list[tuple[str, str]] = [
    (DEEP, "is damaged: it is nested too deep"),
    (f'{{"text": {LONG}}}', "is damaged: Exceeds the limit"),
    ('{"text": "\\ud800"}', "half of a surrogate pair"),
    ('{"text": 1}', "is not a string but int"),
    ("null", "is empty"),
    ("[1]", "is not an object but int"),
    ('{"te\\u001bxt": "a"}', r"its fields: te\\x1bxt"),
    ('{"text": "a"}\n{"text": ', "line 2 is not valid JSON"),
]


@pytest.mark.parametrize(("data", "message"), ROWS, ids=[row[1] for row in ROWS])
def test_rows_of_a_text(model: Path, tmp_path: Path, data: str, message: str) -> None:
    content("rows.jsonl", data)(tmp_path)
    with pytest.raises(RequestError, match=message):
        fxprune.evaluate(model, tmp_path / "rows.jsonl", window=8)


def test_strings_that_no_file_can_hold_are_no_text(model: Path) -> None:
    for rows in (["a \ud800 b"], ["a", "\udcff"]):
        with pytest.raises(RequestError, match="half of a surrogate pair"):
            fxprune.evaluate(model, rows, window=8)


def test_what_is_valid_passes() -> None:
    for text in ('{"a": Infinity, "b": NaN}', '{"a": 1, "a": 2}', '{"a": "\\ud83d\\ude00"}', f'{{"a": {"9" * 400}}}'):
        assert parse_json(text, "x", "") is not None
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "x", "") is not None


DAMAGES: dict[str, Damage] = {
    "weight_map": content(INDEX, '{"weight_map": {"a": 1}}'),
    "architectures": config(architectures=[1]),
    "deep": content("config.json", DEEP),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_command_line_says_error_and_exits_with_2(
    sharded: Path, tmp_path: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxprune.cli import main

    folder = copied(sharded, tmp_path / "model")
    damage(folder)
    assert main(["apply", str(folder), "--pass", "magnitude", "--ratio", "0.5", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "bug" not in told
    assert not (tmp_path / "out").exists()


def layers() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def test_the_repairs_in_the_record_of_a_module(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    fxprune.prune_module(layers(), (torch.ones(1, 4),), "magnitude", ratio=0.5).save(folder)
    for repairs in ({"": {"training": 1}}, {"": {"forward": ["a", "b"]}}, []):
        entry(RECORD, repairs=repairs)(folder)
        with pytest.raises(RequestError, match="'repairs"):
            fxprune.load(folder, into=layers())
