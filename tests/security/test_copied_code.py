"""What is copied from a model directory: data, and code only by consent; and what a config may change of a module."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.backends.copied_files import COMPANIONS, NOT_NEEDED, companions, copy_files
from fxprune.backends.digests import sha256
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.runtime.consent import Consent

from .planted import plant, write_code, write_into

TOKENIZER = {"AutoTokenizer": ["evil_tokenizer.EvilTokenizer", None]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A GPT-2 whose tokenizer has code, which imports more code; and what might be taken for a tokenizer's file."""
    folder = plant(tmp_path / "source", tmp_path / "ran")
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    write_code(folder / "evil_tokenizer.py", tmp_path / "ran")
    (folder / "evil_tokenizer.py").write_text("from .more import WORDS\n" + (folder / "evil_tokenizer.py").read_text())
    (folder / "more.py").write_text("WORDS = []\n")
    write_into(folder / "tokenizer_config.json", auto_map=TOKENIZER)
    write_into(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"}, size=3)
    write_into(folder / "generation_config.json", max_new_tokens=7)
    for name in ("tokenizer.pkl", "vocab.so", "tokenizer.py", "LICENSE.sh", "tokenizer.model.v3"):
        (folder / name).write_text("x")
    write_code(folder / "custom_generate" / "generate.py", tmp_path / "ran")
    return folder


def apply(source: Path, *words: str, form: str = "free") -> dict[str, Any]:
    out = source.with_name("out")
    asked = ["apply", str(source), "--pass", "random{seed=0}", "--ratio", "0.25", "--form", form, "--out", str(out)]
    assert main([*asked, *words]) == 0
    record: dict[str, Any] = json.loads((out / "fxprune.json").read_text())
    return record


@pytest.mark.parametrize("form", ["free", "uniform"])
def test_no_code_comes_along(form: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = apply(source, form=form)
    out = tmp_path / "out"
    own = {"modeling_fxprune.py"} if form == "free" else set()
    assert {path.name for path in out.rglob("*.py")} == own == set(record["code"])
    assert not {"tokenizer.pkl", "vocab.so", "LICENSE.sh"} & {path.name for path in out.iterdir()}
    assert (out / "tokenizer.model.v3").is_file()
    assert not any("auto_map" in json.loads(path.read_text()) for path in out.glob("*_config.json"))
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"size": 3}
    said = " ".join(capsys.readouterr().out.split())
    assert "not copied: the code that tokenizer_config.json names: evil_tokenizer.EvilTokenizer" in said
    assert "not copied: tokenizer.pkl, which is not known to be data" in said
    assert "not copied: tokenizer.py, which is code" in said
    assert any("tokenizer.pkl" in line for line in record["not_copied"])
    for name in own:
        assert sha256(out / name) == record["code"][name]


def test_a_user_who_trusts_our_file_runs_nothing_else(source: Path, tmp_path: Path) -> None:
    apply(source)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_code_comes_along_by_consent_and_is_listed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_into(source / "preprocessor_config.json", auto_map=None)
    record = apply(source, "--trust-remote-code")
    out = tmp_path / "out"
    names = {"modeling_fxprune.py", "evil_tokenizer.py", "more.py"}
    assert {path.name for path in out.rglob("*.py")} == names
    assert record["code"] == {name: sha256(out / name) for name in record["code"]}
    assert set(record["code"]) == names
    assert json.loads((out / "tokenizer_config.json").read_text())["auto_map"] == TOKENIZER
    assert "copied, since it may run: evil_tokenizer.py, more.py" in " ".join(capsys.readouterr().out.split())


def test_code_with_the_name_of_our_file_does_not_take_its_place(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_code(source / "modeling_fxprune.py", tmp_path / "ran")
    write_into(source / "tokenizer_config.json", auto_map={"AutoTokenizer": "modeling_fxprune.EvilTokenizer"})
    out = tmp_path / "out"
    words = ["--pass", "random{seed=0}", "--ratio", "0.25", "--form", "free", "--trust-remote-code", "--out", str(out)]
    assert main(["apply", str(source), *words]) == 1
    assert "modeling_fxprune.py is not the file that fxprune wrote" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_code_that_is_missing_or_elsewhere_is_left_out(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (tmp_path / "outside.py").write_text("")
    (source / "reaching.py").write_text("from .a/../../outside import x\n")
    for reference in ("absent.Evil", "../outside.Evil", f"{tmp_path}/outside.Evil", "reaching.Evil"):
        write_into(source / "tokenizer_config.json", auto_map={"AutoTokenizer": reference})
        copied = copy_files([source / "tokenizer_config.json"], folder, Consent.of_user(source, code=True))
        (left_out,) = copied.left_out
        assert left_out == f"the code that tokenizer_config.json names: {reference}{NOT_NEEDED}"
        assert "auto_map" not in (folder / "tokenizer_config.json").read_text()
    assert not list(folder.glob("*.py"))


def test_an_export_copies_no_code(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    report: Any = fxprune.export(source, out, cache=False)
    assert not list(out.rglob("*.py"))
    assert report.code == {}
    assert any("evil_tokenizer.EvilTokenizer" in line for line in report.left_out)
    assert "auto_map" not in json.loads((out / "tokenizer_config.json").read_text())


def entries(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Damaged ``fxprune`` entries: what is changed, the entry, and what is said."""
    entry = config["fxprune"]
    name, shape = next(iter(entry["shapes"].items()))
    attributes = [
        ("", "forward", [1, 2]),
        ("", "__class__", [1, 2]),
        ("", "_modules", [1, 2]),
        ("", "config", [1, 2]),
        ("", "config.model_type", [1, 2]),
        ("", "config.__class__", [1, 2]),
        ("", "no_such", [1, 2]),
        ("no.such", "x", [1, 2]),
        ("transformer.h.0.attn", "num_heads", [2, "evil"]),
        ("transformer.h.0.attn", "num_heads", 2),
        ("transformer.h.0.attn", "num_heads", [2, {"a": 1}]),
        ("transformer.h.0.attn", "num_heads", [2, [1, "evil"]]),
        ("transformer.h.0.attn", "num_heads.real", [1, 2]),
    ]
    for path, attribute, change in attributes:
        yield (
            f"{path}.{attribute} {change}",
            {**entry, "attributes": {path: {attribute: change}}},
            "config.json changes",
        )
    for wrong in ([10**9] * len(shape), [-1] * len(shape), [], "x", [str(size) for size in shape]):
        yield f"shape {wrong}", {**entry, "shapes": {name: wrong}}, "config.json makes"
    yield "no such tensor", {**entry, "shapes": {"forward": [1]}}, "config.json makes"
    for path, absence in (("", {"outputs": 0, "cache": None}), ("no.such", {"outputs": 0, "cache": None})):
        yield f"absent {path}", {**entry, "absent": {path: absence}}, "is absent"
    for absence in (1, {"outputs": "x", "cache": None}, {"outputs": 0, "cache": None, "forward": 1}):
        yield f"absent {absence}", {**entry, "absent": {"transformer.h.0.mlp": absence}}, "is absent"
    for damaged in ({}, [], "x", {**entry, "shapes": 1}, {**entry, "attributes": [1]}, {**entry, "absent": {"a": {}}}):
        yield f"{damaged}", damaged, "config.json"
    filled = {"outputs": 0, "cache": "x"}
    yield "cache", {**entry, "absent": {"transformer.h.0.mlp": filled}}, "of the cache"


def test_a_strangers_entry_changes_integers_only(source: Path, tmp_path: Path) -> None:
    apply(source)
    out = tmp_path / "out"
    fxprune.load(out)
    config = json.loads((out / "config.json").read_text())
    count = 0
    for what, entry, said in entries(config):
        (out / "config.json").write_text(json.dumps({**config, "fxprune": entry}))
        print(what)  # shown when it is not refused
        with pytest.raises(RequestError, match=rf"{said}|config\.json is damaged: 'fxprune") as caught:
            fxprune.load(out)
        assert caught.value.hint
        count += 1
    assert count > 20


def test_the_modelling_file_of_a_directory_is_not_what_load_runs(source: Path, tmp_path: Path) -> None:
    apply(source)
    write_code(tmp_path / "out" / "modeling_fxprune.py", tmp_path / "ran")
    with torch.no_grad():
        fxprune.load(tmp_path / "out")(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert not (tmp_path / "ran").exists()


LEFT_OUT: dict[str, Callable[[Path], object]] = {
    "tokenizer.pt": lambda at: (at / "tokenizer.pt").write_text("x"),
    "vocab.npy": lambda at: (at / "vocab.npy").write_text("x"),
    "processor_config.json": lambda at: write_into(
        at / "processor_config.json", image_processor={"auto_map": {"AutoImageProcessor": "a.B"}}
    ),
    "generation_config.json": lambda at: write_into(at / "generation_config.json", auto_map={"Any": ["a.B"]}),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_said(name: str, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    folder.mkdir()
    LEFT_OUT[name](source)
    copied = copy_files(sorted(source.iterdir()), folder, Consent.nothing(source))
    assert len(copied.left_out) == 1
    assert name in copied.left_out[0]
    assert "auto_map" not in "".join(path.read_text() for path in folder.iterdir())


@pytest.mark.parametrize("head", [b"\x7fELF\x02", b"\xcf\xfa\xed\xfe", b"MZ\x90\x00", b"#!/bin/sh\n"])
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json", "tokenizer.model.v3", "LICENSE"])
def test_a_program_is_not_copied_as_data(name: str, head: bytes, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    folder.mkdir()
    (source / name).write_bytes(head + b"data")
    (source / "merges.txt").write_text("#version: 0.2\n")
    copied = copy_files(companions(source), folder, Consent.nothing(source))
    assert [path.name for path in folder.iterdir()] == ["merges.txt"]
    assert len(copied.left_out) == 1
    assert copied.left_out[0].startswith(f"{name}, which begins as a program")


def test_an_export_takes_only_what_it_knows_by_name(source: Path, tmp_path: Path) -> None:
    library = {"model": {"decoder": {"session_options": {"custom_ops_library": "evil.model"}}}}
    (source / "genai_config.json").write_text(json.dumps(library))
    (source / "evil.model").write_bytes(b"\x7fELF")
    (source / "others.json").write_text("{}")
    assert main(["export", str(source), "--out", str(tmp_path / "onnx"), "--no-cache"]) == 0
    written = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert not {"genai_config.json", "evil.model", "others.json"} & written
    assert "evil.model" in "".join(json.loads((tmp_path / "onnx" / "fxprune.json").read_text())["left_out"])
    assert not any(fnmatch.fnmatchcase("genai_config.json", pattern) for pattern in COMPANIONS)
