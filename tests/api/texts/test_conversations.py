"""Conversations from the command line to the artifact: what is trained, what is recorded, and that it repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune import cli
from fxprune.backends.artifact import read_record
from fxprune.backends.digests import sha256
from fxprune.ir.errors import RequestError

from ...checkpoints import contents
from ..pruning.interrupted import write_source

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
LORA = "lora{steps=1,batch=2,micro_batch=2,length=12,warmup=0}"


def said(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_source(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    rows = [said("a b c", "d e", "f", "g h"), said("c b a", "e d"), {"messages": None}, said("a " * 20, "b")]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.csv").write_text("q,a\nx y,z\ny x,w v\n")
    return folder


def test_a_run_on_conversations_is_recorded_and_repeats(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["apply", str(source), "--pass", f"magnitude{{ratio=0.25}},{LORA}", "--data", str(tmp_path / "chats.jsonl")]
    assert cli.main([*words, "--out", str(tmp_path / "one")]) == 0
    out = capsys.readouterr().out
    assert "recovery text chats.jsonl: 1 row without a value left out" in out
    assert "lora: 1 row left out: no answer begins within 12 tokens (option length)" in out
    record = read_record(tmp_path / "one")
    digest = sha256(tmp_path / "chats.jsonl")
    assert record["texts"][0]["read_from"] == {"format": "messages", "nulls": 1, "sha256": digest}
    assert "train_on=auto" in record["pipeline"]
    assert cli.main([*words, "--out", str(tmp_path / "two")]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert cli.main([*words, "--out", str(tmp_path / "all"), "--train-on", "all"]) == 0
    whole = read_record(tmp_path / "all")
    assert "train_on=all" in whole["pipeline"]
    assert whole["passes"]["lora"]["loss"] != record["passes"]["lora"]["loss"]
    assert "remarks" not in whole["passes"]["lora"]


def test_files_of_several_formats_train_together(source: Path, tmp_path: Path) -> None:
    passes, out = f"magnitude{{ratio=0.25}},{LORA}", tmp_path / "out"
    files = [tmp_path / "chats.jsonl", tmp_path / "pairs.csv"]
    with pytest.raises(RequestError, match="no field 'q'"):
        fxprune.apply(source, passes, data=files, field="q,a", out=out)
    (tmp_path / "more.jsonl").write_text('{"q": "a b", "a": "c"}\n')
    fxprune.apply(source, passes, data=[files[1], tmp_path / "more.jsonl"], field="data=q,a", out=out)
    (text,) = read_record(out)["texts"]
    assert text["name"] == "pairs.csv, more.jsonl"
    assert text["pieces"] == 3
    assert text["read_from"]["files"] == [
        {"name": name, "format": "prompt", "field": "q,a", "sha256": sha256(tmp_path / name)}
        for name in ("pairs.csv", "more.jsonl")
    ]


def test_rows_without_an_answer_are_refused_before_any_pass(source: Path, tmp_path: Path) -> None:
    rows = tmp_path / "asked.jsonl"
    rows.write_text(json.dumps(said("a b c")) + "\n" + json.dumps(said("d e")) + "\n")
    told: list[str] = []
    passes = f"magnitude{{ratio=0.25}},{LORA}"
    with pytest.raises(RequestError, match="has no row with an answer") as caught:
        fxprune.apply(source, passes, data=rows, out=tmp_path / "out", progress=told.append)
    assert "--train-on all" in caught.value.hint
    assert told
    assert not [text for text in told if text.startswith("magnitude")]
    pairs = [tmp_path / "chats.jsonl", tmp_path / "chats.jsonl"]
    fxprune.apply(source, passes, data=pairs, train_on="answers", out=tmp_path / "out")  # each has its own answers
