"""What a data set may make ``datasets`` open: its own files, and of these only the texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from fxprune.ir.errors import RequestError
from fxprune.tracer.texts.rows import read_dataset

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = {"dtype": "string", "_type": "Value"}

DECODED: dict[str, dict[str, Any]] = {
    "an image": {"_type": "Image"},
    "a sound": {"_type": "Audio"},
    "a list of images": {"feature": {"_type": "Image"}, "_type": "List"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(folder: Path, feature: dict[str, Any], value: str) -> Path:
    """A text, and a column of files whose schema says how they are decoded."""
    folder.mkdir()
    row, kind = {"bytes": None, "path": value}, FILE
    schema = json.dumps({"info": {"features": {"text": TEXT, "other": feature}}})
    if feature["_type"] == "List":
        row, kind = [row], pa.list_(FILE)  # type: ignore[assignment]
    held = pa.table({"text": ["one", "two"], "other": pa.array([row] * 2, kind)})
    parquet.write_table(held.replace_schema_metadata({"huggingface": schema}), folder / "rows.parquet")
    return folder


def decoded(*_: object, **__: object) -> None:
    raise AssertionError("it was decoded")


@pytest.mark.parametrize("where", ["/secret.png", "https://example.org/x.png", "../secret.png"])
@pytest.mark.parametrize("what", DECODED)
def test_no_column_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, where: str) -> None:
    for kind in (datasets.Image, datasets.Audio):
        monkeypatch.setattr(kind, "decode_example", decoded)
    folder = table(tmp_path / "data", DECODED[what], where)
    assert read_dataset(str(folder)).rows == ("one", "two")
    with pytest.raises(RequestError, match=r"field 'other' is not a string but (Image|Audio|List)") as caught:
        read_dataset(str(folder), "other")
    assert "texts" in (caught.value.hint or "")


def test_the_test_above_would_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.Image, "decode_example", decoded)
    monkeypatch.setattr("fxprune.tracer.texts.rows.text_columns", lambda rows, *_: rows)
    with pytest.raises(RequestError, match="can be loaded: it was decoded"):
        read_dataset(str(table(tmp_path / "data", DECODED["an image"], "/secret.png")))


def test_the_fields_of_instructions(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"instruction": "do", "output": "done", "input": "this", "more": [1]}\n')
    assert "### Input:\nthis" in read_dataset(str(folder)).rows[0]
    (folder / "a.jsonl").write_text('{"instruction": "do", "output": "done", "input": ["this"]}\n')
    with pytest.raises(RequestError, match=r"field 'input' is not a string but list"):
        read_dataset(str(folder))


@pytest.mark.parametrize("name", ["a.png", "a.wav", "a.tar", "a.h5", "a.lance"])
def test_files_that_are_no_tables_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"x")
    with pytest.raises(RequestError, match=r"has files of the format|can be loaded") as caught:
        read_dataset(str(tmp_path / "data"))
    assert caught.value.hint


class Builder(SimpleNamespace):
    def download_and_prepare(self) -> None:
        raise AssertionError("something was read")


Builder.__module__ = "datasets.packaged_modules.json.json"


@pytest.mark.parametrize("file", ["/etc/passwd", "https://example.org/a.json", "zip://a::/home/a.zip"])
def test_a_data_set_of_the_hub_reads_the_hub(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    files = {"train": ["hf://datasets/owner/name@1/a.json", file]}
    found = Builder(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: found)
    with pytest.raises(RequestError, match=f"owner/name reads {file}, which is not on the Hub"):
        read_dataset("owner/name")


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": 'null\n{"text": "one", "n": 1}\nnull\n'},
        {"a.json": '[null, {"text": "one"}, null]'},
        {"a.jsonl": "null\nnull\n", "b.jsonl": '{"text": "one"}\n', "c.jsonl": ""},
    ],
    ids=["lines", "a list", "a file of them alone"],
)
def test_null_rows_of_json_files_are_counted(tmp_path: Path, files: dict[str, str]) -> None:
    """At a first row that is null, the reader of `datasets` ends the process without a word."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    records = read_dataset(str(tmp_path))
    assert (records.rows, records.nulls) == (("one",), 2)


def test_a_compressed_split_with_null_rows_and_a_damaged_file_beside_one(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "other"}\n')
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b'null\n{"text": "one"}\n'))
    records = read_dataset(f"{tmp_path}:test")
    assert (records.rows, records.nulls) == (("one",), 1)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b'null\n{"text": "one"\n'))
    with pytest.raises(RequestError, match=r"test\.jsonl\.gz' line 2 is not valid JSON"):
        read_dataset(f"{tmp_path}:test")
