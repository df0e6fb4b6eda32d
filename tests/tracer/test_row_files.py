"""Files of rows as people have them: endings, compression, tables, nulls, fields; one row per message."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fxprune.ir.errors import RequestError
from fxprune.tests.tracer.test_texts import byte_tokenizer
from fxprune.tracer.texts.corpus import Text, load_text, options_of_text

ROWS = [{"text": "one, two"}, {"text": 'he said "hé 漢"'}, {"text": "a\nb"}]
WANTED = ("one, two", 'he said "hé 漢"', "a\nb")


def load(path: Path, **options: Any) -> Text:
    return load_text(str(path), byte_tokenizer(), **options)


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_arrow(path: Path, rows: list[Any], *, stream: bool) -> None:
    table = pa.Table.from_pylist(rows)
    kind = pa.ipc.new_stream if stream else pa.ipc.new_file
    with kind(str(path), table.schema) as file:
        file.write_table(table)


def write_zst(path: Path, content: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(content)


CSV = 'id,text\n1,"one, two"\n2,"he said ""hé 漢"""\n3,"a\nb"\n'

FILES: dict[str, str | bytes] = {
    "a.jsonl": jsonl(ROWS),
    "a.ndjson": jsonl(ROWS),
    "a.JSONL": jsonl(ROWS),
    "list.json": json.dumps(ROWS, indent=1),
    "lines.json": jsonl(ROWS),
    "data.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS).encode(),
    "crlf.jsonl": jsonl(ROWS).replace("\n", "\r\n").encode(),
    "a.csv": CSV,
    "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "crlf.csv": CSV.replace("\n", "\r\n").encode(),
    "excel.csv": CSV.replace("id,text", "id;text").replace('1,"', '1;"').replace('2,"', '2;"').replace('3,"', '3;"'),
    "a.tsv": 'id\ttext\n1\tone, two\n2\t"he said ""hé 漢"""\n3\t"a\nb"\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_file_of_rows_is_read_by_its_ending(tmp_path: Path, name: str, compression: str) -> None:
    content = FILES[name]
    content = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / f"{name}{compression}"
    if compression == ".zst":
        write_zst(path, content)
    else:
        path.write_bytes(gzip.compress(content) if compression else content)
    assert load(path).rows == WANTED
    assert not load(path).whole


def test_files_of_columns(tmp_path: Path) -> None:
    rows = [{**row, "other": [1]} for row in ROWS]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write_arrow(tmp_path / "stream.arrow", rows, stream=True)
    write_arrow(tmp_path / "file.arrow", rows, stream=False)
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        assert load(tmp_path / name).rows == WANTED


def test_a_compressed_text_is_a_running_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc,def\n"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"abc,def\n"))
    for name in ("a.txt.gz", "b.gz"):
        assert load(tmp_path / name).rows == ("abc,def\n",)
        assert load(tmp_path / name).whole


def test_rows_without_a_value_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('null\n{"text": null}\n{"text": "a"}\n{"text": ""}\n')
    (tmp_path / "a.csv").write_text("text,n\nabc,1\n,2\ndef\n\n")
    parquet.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    for name, rows, nulls in (("a.jsonl", ("a", ""), 2), ("a.csv", ("abc", "def"), 1), ("a.parquet", ("a", "b"), 1)):
        text = load(tmp_path / name)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert (text.rows, text.read_from) == (rows, {"format": "text", "nulls": nulls, "sha256": digest})


def test_a_field_may_lie_within_others(tmp_path: Path) -> None:
    rows = [{"meta": {"body": "in", "n": 1}, "a.b": "dotted", "a": {"b": "not"}}, {"meta": None, "a.b": "two"}]
    (tmp_path / "a.jsonl").write_text(jsonl(rows))
    assert load(tmp_path / "a.jsonl", field="meta.body").rows == ("in",)
    assert load(tmp_path / "a.jsonl", field="a.b").rows == ("dotted", "two")
    read_from = dict(load(tmp_path / "a.jsonl", field="meta.body").read_from)
    assert len(read_from.pop("sha256")) == 64
    assert read_from == {"format": "text", "field": "meta.body", "nulls": 1}
    parquet.write_table(pa.Table.from_pylist([{"meta": {"body": "in"}}]), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", field="meta.body").rows == ("in",)


def test_one_row_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "only"}')
    (tmp_path / "a.csv").write_text("text\nonly")
    assert load(tmp_path / "a.json").rows == load(tmp_path / "a.csv").rows == ("only",)


def test_a_value_of_a_table_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000)
    assert len(load(tmp_path / "a.csv").rows[0]) == 200_000


def test_rows_in_memory_of_numbers_stay_text(tmp_path: Path) -> None:
    """A library that guesses types would read numbers, and null where it says NA."""
    (tmp_path / "a.csv").write_text("text\n007\nNA\nnull\n1e3\n")
    assert load(tmp_path / "a.csv").rows == ("007", "NA", "null", "1e3")


def test_which_options_mean_something(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    for spec, options in (
        (str(tmp_path / "a"), ""), ("missing.txt", ""), ("rows.csv.gz", "field"), ("rows.parquet", "field"),
        ("org/set", "field split"), (str(tmp_path), "field split"),
    ):  # fmt: skip
        assert options_of_text(spec) == frozenset(options.split()), spec


# Without the time: the names of tests must not depend on the second in which a worker collects them.
SHORTENED = gzip.compress(b'{"text": "abc"}' * 99, mtime=0)[:-9]
TWICE = gzip.compress(b"x", mtime=0)

ERRORS: list[tuple[str, str | bytes, dict[str, str], str, str]] = [
    ("a.csv", "", {}, "is empty", "text"),
    ("a.csv", "text\n", {}, "a.csv' is empty", "text"),
    ("a.csv", "text\n,\n", {}, "line 2 has 2 values, and the first line names 1 columns", '"..."'),
    ("a.csv", 'text\n"abc\n', {}, "line 2 is no row of values: unexpected end of data", "column names"),
    ("a.csv", "body,n\nx,1\n", {}, "line 2 has no known text field; its fields: body, n", "--field"),
    ("a.csv", "body,n\nx,1\n", {"field": "text"}, "line 2 has no field 'text'; its fields: body, n", "--field"),
    ("a.csv", "text,n\n,1\n,2\n", {}, "is empty: all of its 2 rows are null", "text"),
    ("a.csv", b"text\nabc\xff\n", {}, "is not UTF-8 text: byte 8 is 0xff", "iconv"),
    ("a.jsonl", '{"a": {"b": "x"}}', {"field": "a.c"}, "'a' of '{path}' line 1 has no field 'c'; its fields: b", "--"),
    ("a.jsonl", '{"a": "x"}', {"field": "a.c"}, "has no field 'c', but it is no object but str", "--field"),
    ("a.jsonl", '{"a": {"b": 3}}', {"field": "a.b"}, "line 1: field 'a.b' is not a string but int", "--field"),
    ("a.jsonl", '{"a": "x", "b": "y"}', {"field": "a,b,c"}, "--field a,b,c names 3 fields", "PROMPT,ANSWER"),
    ("a.jsonl", '{"a": "x", "b": "y"}', {"field": "a,c"}, "line 1 has no field 'c'; its fields: a, b", "--field"),
    ("a.jsonl", '{"a": "x"}', {"split": "test"}, "is a file and has no split 'test'", "--split"),
    ("a.parquet", b"not parquet", {}, "cannot be read as .parquet: ", "copy it again"),
    ("a.arrow", b"not arrow", {}, "cannot be read as .arrow: ", "copy it again"),
    ("a.txt.gz", b"plain text", {}, "a.txt.gz' cannot be decompressed: ", "copy it again"),
    ("a.jsonl.gz", SHORTENED, {}, "cannot be decompressed: ", "copy it again"),
    ("a.jsonl.zst", b"plain text", {}, "a.jsonl.zst' cannot be decompressed: ", "copy it again"),
    ("a.parquet.gz", TWICE, {}, "is compressed twice: .parquet has its own compression", "decompress"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "message", "hint"), ERRORS)
def test_what_cannot_be_read_is_an_error(
    tmp_path: Path, *, name: str, content: str | bytes, options: dict[str, str], message: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError) as caught:
        load(path, **options)
    assert message.replace("{path}", str(path)) in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.arrow", "a.tsv.zst"])
def test_a_missing_file_of_rows_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"there is no (text )?file '.*" + name):
        load(tmp_path / name)


def test_a_column_of_files_is_not_opened(tmp_path: Path) -> None:
    """A schema that says how values are decoded has no effect: they stay data."""
    row = {"text": "one", "image": {"bytes": None, "path": "/etc/passwd"}}
    schema = json.dumps(
        {"info": {"features": {"image": {"_type": "Image"}, "text": {"_type": "Value", "dtype": "string"}}}}
    )
    table = pa.Table.from_pylist([row])
    parquet.write_table(table.replace_schema_metadata({"huggingface": schema}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").rows == ("one",)
    with pytest.raises(RequestError, match="field 'image' is not a string but dict"):
        load(tmp_path / "a.parquet", field="image")


def test_a_directory_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text,n\none,1\ntwo,2\n")
    (tmp_path / "set" / "test.csv").write_text("text,n\nthree,1\n")
    spec = str(tmp_path / "set")
    assert load(tmp_path / "set").rows == ("one", "two")
    assert load(tmp_path / "set", split="test").rows == ("three",)
    assert load(tmp_path / "set", split="train[1:]").rows == ("two",)
    assert load_text(f"{spec}:default", byte_tokenizer(), split="test").rows == ("three",)
    with pytest.raises(RequestError, match="names the split 'test', and --split 'train'"):
        load_text(f"{spec}:default:test", byte_tokenizer(), split="train")
    with pytest.raises(RequestError, match='Unknown split "dev"'):
        load(tmp_path / "set", split="dev")
    assert not (tmp_path / "cache").exists()


def test_a_directory_of_conversations(tmp_path: Path) -> None:
    from fxprune.tests.tracer.test_chats import TWO, chat_tokenizer

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(TWO))
    text = load_text(str(tmp_path / "set"), chat_tokenizer())
    assert text.rows == load_text(str(tmp_path / "set" / "train.jsonl"), chat_tokenizer()).rows
    assert len(text.answers or ()) == 1
