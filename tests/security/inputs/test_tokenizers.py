"""Tokenizers whose files are damaged in ways that show at the first text, some of them by a panic of Rust code."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import greenlet
import pytest
from tokenizers import Tokenizer

from fxprune import api
from fxprune.cli import main
from fxprune.ir.errors import RequestError, ends_program
from fxprune.tracer.model import load_tokenizer, resolve
from fxprune.tracer.texts.corpus import from_string

from ..strangers import Damage, copied, entry, write_model

AGAIN = "copy or download the tokenizer again"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tokenizers") / "model")


def replaced(**entries: Any) -> Damage:
    """Other parts of tokenizer.json."""
    return entry("tokenizer.json", **entries)


def vocabulary(kind: str, words: Any, **entries: Any) -> Damage:
    return replaced(model={"type": kind, "vocab": words, **entries})


BPE = {"dropout": None, "unk_token": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
PIECES = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
PANIC_BPE = vocabulary("BPE", {"a": 0, "b": 1, "ab": 2}, merges=[["a", "b"]], continuing_subword_prefix="é", **BPE)
SEQUENCE = [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
TEMPLATE = {"type": "TemplateProcessing", "single": SEQUENCE, "pair": SEQUENCE, "special_tokens": {}}

BROKEN_MAP = replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "CAAAAP////////8AAAA="})

BROKEN: dict[str, Damage] = {
    "a broken map of characters": BROKEN_MAP,
    "a short map of characters": replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
    "a template with a token that has no entry": replaced(post_processor=TEMPLATE),
    "words without the unknown one": vocabulary("WordLevel", {"b": 0}, unk_token="<unk>"),
    "no words": vocabulary("WordLevel", {}, unk_token="<unk>"),
    "word pieces without the unknown one": vocabulary("WordPiece", {"b": 0}, **PIECES),
    "pieces without an unknown one": vocabulary("Unigram", [["b", -1.0]], unk_id=None, byte_fallback=False),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_breaks_at_the_first_text(model: Path, tmp_path: Path, damage: Damage) -> None:
    folder = copied(model, tmp_path / "model")
    damage(folder)

    text = replace(from_string("t", "aé ab c", load_tokenizer(resolve(folder))), whole=False)
    with pytest.raises(RequestError, match="the tokenizer cannot read the text 't': ") as caught:
        text.examples(8)
    assert caught.value.hint == AGAIN


def test_a_tokenizer_that_breaks_while_it_is_loaded(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    PANIC_BPE(folder)
    with pytest.raises(RequestError, match="has no readable tokenizer: slice index"):
        load_tokenizer(resolve(folder))


def test_so_it_is_when_tokens_become_text(model: Path) -> None:
    class Broken:
        def decode(self, *_: object, **__: object) -> str:
            raise panic()

    text = replace(from_string("t", "a", load_tokenizer(resolve(model))), tokenizer=Broken())  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="cannot read the text 't': PanicException") as caught:
        text.decode([0])
    assert caught.value.hint == AGAIN


def test_the_command_line_says_so(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, text = copied(model, tmp_path / "model"), model.parent / "text.txt"
    BROKEN_MAP(folder)
    assert main(["eval", str(folder), "--text", str(text), "--window", "2"]) == 2
    said = capfd.readouterr().err
    assert "error: the tokenizer cannot read the text" in said
    assert said.endswith(f"hint: {AGAIN}\n")
    assert "Traceback" not in said


def panic() -> BaseException:
    """What a library in Rust raises where it panics; its class cannot be imported."""
    broken = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], **BPE}
    empty = Tokenizer.from_str('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    data = json.loads(empty.to_str()) | {"model": broken | {"continuing_subword_prefix": "é"}}
    try:
        Tokenizer.from_str(json.dumps(data)).encode("aé ab")
    except BaseException as error:
        return error
    raise AssertionError("it did not panic")


def test_a_panic_anywhere_is_an_error_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = panic()
    assert not isinstance(error, Exception)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "trace", fail)
    assert main(["trace", "anything"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected PanicException: ")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), greenlet.GreenletExit(), asyncio.CancelledError()]
)
def test_what_ends_a_program_is_no_error(model: Path, error: BaseException) -> None:
    class Ending:
        def decode(self, *_: object, **__: object) -> str:
            raise error

    assert ends_program(error)
    text = replace(from_string("t", "a", load_tokenizer(resolve(model))), tokenizer=Ending())  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        text.decode([0])
