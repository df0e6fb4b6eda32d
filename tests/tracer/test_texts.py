"""Texts: files, JSON rows and data sets become windows and training examples; one row per message."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fxprune.ir.errors import RequestError
from fxprune.tracer.texts.corpus import Text, from_string, load_text
from fxprune.tracer.texts.rows import split_spec

BOS, EOS = 256, 257


def byte_tokenizer(*, eos: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte; ids 0 to 255 in the order of the byte-level alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)} | {"<s>": BOS, "</s>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>" if eos else None)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def encode(text: str) -> list[int]:
    return byte_tokenizer().encode(text, add_special_tokens=False)


def write(path: Path, content: str | bytes | list[object]) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def test_a_text_file_is_cut_into_windows_and_its_tail_is_dropped(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = load_text(write(tmp_path / "a.txt", "abcdefghij\n"), tokenizer)
    assert text.windows(4).tolist() == [encode("abcd"), encode("efgh")]
    assert text.windows(4, 1).tolist() == [encode("abcd")]
    assert text.windows(4).dtype == torch.int64


def test_windows_carry_no_special_tokens() -> None:
    text = from_string("t", "abcd", byte_tokenizer(bos=True))
    assert text.windows(4).tolist() == [encode("abcd")]


def test_a_token_that_the_model_does_not_know_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    known = replace(from_string("t", "abcd", tokenizer), vocabulary=max(encode("abcd")) + 1)
    assert known.windows(2).tolist() == [encode("ab"), encode("cd")]
    with pytest.raises(RequestError, match="but the model has 7 tokens") as caught:
        replace(known, vocabulary=7).windows(2)
    assert "tokenizer that the model was trained with" in caught.value.hint


def test_a_seed_draws_windows_at_random_without_repetition(tokenizer: PreTrainedTokenizerFast) -> None:
    text = from_string("t", "".join(chr(33 + i) for i in range(90)), tokenizer)
    drawn = text.windows(1, 30, seed=3)
    assert torch.equal(drawn, text.windows(1, 30, seed=3))
    assert not torch.equal(drawn, text.windows(1, 30, seed=4))
    assert not torch.equal(drawn, text.windows(1, 30))
    assert len(set(drawn.flatten().tolist())) == 30
    assert sorted(text.windows(1, seed=3).flatten().tolist()) == sorted(text.ids.tolist())


def test_windows_of_rows_run_over_a_blank_line(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = load_text(write(tmp_path / "a.jsonl", [{"text": "ab"}, {"text": ""}, {"text": "cd"}]), tokenizer)
    assert text.ids.tolist() == encode("ab\n\n\n\ncd")


def test_examples_of_running_text_are_its_windows(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = from_string("t", "abcdefg", tokenizer).examples(3)
    assert examples == [{"input_ids": encode(t), "labels": encode(t)} for t in ("abc", "def")]


def test_text_rows_stay_rows_and_are_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "abcdef"}, {"text": ""}, {"text": "xy"}])
    examples = load_text(path, byte_tokenizer(bos=True)).examples(4)
    assert [example["input_ids"] for example in examples] == [[BOS, *encode("abc")], [BOS, *encode("xy")]]
    assert all(example["labels"] == example["input_ids"] for example in examples)


ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:\n3"
)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (ALPACA, WITH_INPUT),
        (ALPACA | {"input": ""}, WITHOUT_INPUT),
        (ALPACA | {"input": None}, WITHOUT_INPUT),
        ({"instruction": "Add.", "output": "3"}, WITHOUT_INPUT),
        (ALPACA | {"instruction": "{output}"}, WITH_INPUT.replace("Add.", "{output}")),
    ],
    ids=["input", "empty", "null", "absent", "braces"],
)
def test_alpaca_rows_take_their_prompt_and_end(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, row: dict[str, str], prompt: str
) -> None:
    for name, content in (("a.jsonl", [row]), ("a.json", json.dumps([row], indent=1))):
        text = load_text(write(tmp_path / name, content), tokenizer)
        ids = [*encode(prompt), EOS]
        assert text.examples(1000) == [{"input_ids": ids, "labels": ids}]
        assert text.examples(20)[0]["input_ids"] == ids[:20]
        assert text.ids.tolist() == encode(prompt)


def test_no_end_token_is_invented(tmp_path: Path) -> None:
    text = load_text(write(tmp_path / "a.jsonl", [ALPACA]), byte_tokenizer(eos=False))
    assert text.examples(1000)[0]["input_ids"] == encode(WITH_INPUT)


def test_a_field_can_be_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "no", "body": "yes"}])
    assert load_text(path, tokenizer, field="body").rows == ("yes",)


def test_rows_may_hold_any_unicode_line_separator(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b"}\r\n\n{"text": "c"}')
    assert load_text(path, tokenizer).rows == ("a\u2028b", "c")


def test_a_byte_order_mark_is_no_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert load_text(write(tmp_path / "a.txt", b"\xef\xbb\xbfab"), tokenizer).rows == ("ab",)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory that ``datasets`` loads, with its caches kept in the temporary directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "train.jsonl", [{"text": "one"}, {"text": "two"}])
    write(folder / "test.jsonl", [{"text": "three"}])
    return str(folder)


def test_data_sets_load_by_split(dataset: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert load_text(dataset, tokenizer).rows == ("one", "two")
    assert load_text(f"{dataset}:test", tokenizer).rows == ("three",)
    assert load_text(f"{dataset}:default:train[:1]", tokenizer).rows == ("one",)


def test_an_unknown_split_is_an_error(dataset: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match=r"nor a data set that can be loaded: Unknown split \"dev\""):
        load_text(f"{dataset}:dev", tokenizer)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("a/b", ("a/b", None, "train")),
        ("a/b:test", ("a/b", None, "test")),
        ("a/b:c:test", ("a/b", "c", "test")),
        ("a/b:train[:1%]", ("a/b", None, "train[:1%]")),
        ("a/b:c:train[5:9]", ("a/b", "c", "train[5:9]")),
    ],
)
def test_data_set_specs(spec: str, parts: tuple[str, str | None, str]) -> None:
    assert split_spec(spec) == parts


@pytest.mark.parametrize("spec", ["a:b:c:d", "a:", ":b"])
def test_a_spec_with_wrong_parts_is_an_error(spec: str) -> None:
    with pytest.raises(RequestError, match="is not a data set name") as caught:
        split_spec(spec)
    assert caught.value.hint


def test_a_data_set_out_of_reach_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'some/corpus' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    bars = datasets.are_progress_bars_disabled()
    with pytest.raises(RequestError) as caught:
        load_text("some/corpus", tokenizer)
    reason = "Couldn't reach 'some/corpus' on the Hub"
    assert caught.value.message == f"'some/corpus' is neither a file nor a data set that can be loaded: {reason}"
    assert "id:config:split" in caught.value.hint
    assert datasets.are_progress_bars_disabled() == bars


FILE_ERRORS: list[tuple[str, str | bytes | list[object], str]] = [
    ("a.txt", "", "is empty"),
    ("a.txt", " \n\n", "is empty"),
    ("a.txt", b"abc\xff", "is not UTF-8 text: byte 3 is 0xff"),
    ("a.jsonl", "", "is empty"),
    ("a.json", "[]", "is empty"),
    ("a.jsonl", [{"text": ""}], "is empty"),
    ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl' line 2 is not valid JSON: Expecting value at column"),
    (
        "a.json",
        '[{"text": "a"},\n\n {"text" "b"}]',
        "a.json' line 3 is not valid JSON: Expecting ':' delimiter at column",
    ),
    ("a.jsonl", '{"text": "a"}\n["b"]\n', "a.jsonl' line 2 is not an object but list"),
    ("a.json", '["b"]', "a.json' row 0 is not an object but str"),
    (
        "a.jsonl",
        [{"prompt": "a", "answer": "b"}],
        "line 1 has no known text field; its fields: prompt, answer",
    ),
    ("a.jsonl", [{}], "line 1 has no known text field; its fields: none"),
    ("a.jsonl", [{"text": "a"}, {"body": "b"}], "line 2 has no field 'text'; its fields: body"),
    ("a.jsonl", [{"text": 3}], "line 1: field 'text' is not a string but int"),
    ("a.jsonl", [ALPACA | {"input": 3}], "line 1: field 'input' is not a string but int"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILE_ERRORS)
def test_a_bad_file_is_an_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: str | bytes | list[object], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        load_text(write(tmp_path / name, content), tokenizer)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "no-suffix"])
def test_a_missing_file_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    with pytest.raises(RequestError, match="there is no text file '.*" + name):
        load_text(str(tmp_path / name), tokenizer)


def test_a_directory_is_no_text_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(RequestError, match=r"a.jsonl' cannot be read: Is a directory"):
        load_text(str(tmp_path / "a.jsonl"), tokenizer)


def test_a_field_that_is_absent_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(RequestError, match="line 1 has no field 'body'; its fields: text"):
        load_text(path, tokenizer, field="body")


def test_a_text_file_has_no_field(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="is a text file and has no field 'body'"):
        load_text(write(tmp_path / "a.txt", "abc"), tokenizer, field="body")


def test_an_empty_string_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="the text 'built-in' is empty"):
        from_string("built-in", " ", tokenizer)


@pytest.mark.parametrize(
    ("length", "count", "message"),
    [
        (3, 4, "'t' is too short: it holds 3 windows of 3 tokens (10 tokens), 4 are needed"),
        (11, None, "'t' is too short: it holds 0 windows of 11 tokens (10 tokens), 1 are needed"),
        (0, 1, "cannot make 1 windows of 0 tokens"),
        (3, 0, "cannot make 0 windows of 3 tokens"),
    ],
)
def test_windows_that_cannot_be_cut(
    tokenizer: PreTrainedTokenizerFast, length: int, count: int | None, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        from_string("t", "abcdefghij", tokenizer).windows(length, count)
    assert caught.value.message == message
    assert caught.value.hint


def test_too_short_a_text_says_how_many_windows_it_holds(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError) as caught:
        from_string("t", "abcdefghij", tokenizer).windows(3, 4)
    assert "samples=3 of a pass, --windows 3 of eval" in str(caught.value.hint)


def test_rows_with_nothing_to_predict_are_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="'t' has no row with at least two tokens at length 9"):
        Text("t", ("a", "b"), tokenizer, whole=False).examples(9)
