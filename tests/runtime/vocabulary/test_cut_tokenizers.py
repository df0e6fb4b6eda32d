"""Tokenizers without some of their tokens: text whose tokens stay is written as before, other text with others."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fxprune.ir.errors import RequestError
from fxprune.runtime.vocabulary.kept import Renumbering
from fxprune.runtime.vocabulary.models import BytePairs
from fxprune.runtime.vocabulary.scripts import Scripts
from fxprune.runtime.vocabulary.tokens import Tokens
from fxprune.tests.word_models import KINDS, SENTENCES, byte_level, for_transformers, trained, unigram, word_piece

WORDS = sorted({word for line in SENTENCES for word in line.split()})
LETTERS = sorted({letter for line in SENTENCES for letter in line})

texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(LETTERS, min_size=1, max_size=8)), max_size=8).map(" ".join)
anything = st.lists(st.one_of(texts, st.text(max_size=6)), max_size=3).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@given(covered=texts, other=anything, more=st.sets(st.integers(0, 699), max_size=60))
def test_tokens_that_stay_are_used_as_before(
    kind: Callable[[], Tokenizer], covered: str, other: str, more: set[int]
) -> None:
    dense = trained(kind)
    tokens = Tokens.read(json.loads(dense.to_str()))
    before = dense.encode(covered, add_special_tokens=False).ids
    asked = {number for number in more if number in tokens.names} | set(before)
    kept = np.array(sorted(tokens.always | tokens.with_parts(asked)), dtype=np.int64)
    renumbering = Renumbering(kept, dense.get_vocab_size())
    smaller = Tokenizer.from_str(json.dumps(tokens.cut(renumbering.new)))

    assert smaller.get_vocab_size() == len(kept)
    after = smaller.encode(covered, add_special_tokens=False).ids
    assert kept[after].tolist() == before
    assert smaller.decode(after) == dense.decode(before)
    if dense.decode(dense.encode(other, add_special_tokens=False).ids) == other:
        assert smaller.decode(smaller.encode(other, add_special_tokens=False).ids) == other


@pytest.mark.parametrize("kind", KINDS)
def test_some_tokens_can_go(kind: Callable[[], Tokenizer]) -> None:
    tokens = Tokens.read(json.loads(trained(kind).to_str()))
    assert len(tokens.always) < 0.9 * len(tokens.names)


def test_what_a_token_is_merged_from_stays() -> None:
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"], ["b", "c"]]
    model = BytePairs(
        {"vocab": {t: n for n, t in enumerate(["a", "b", "c", "d", "ab", "cd", "abcd", "bc"])}, "merges": merges}, False
    )
    assert model.parts("abcd") == {"a", "b", "c", "d", "ab", "cd"}
    assert model.cut({"a": 0, "b": 1, "ab": 2})["merges"] == [["a", "b"]]


def test_a_token_that_no_merges_make_has_no_parts() -> None:
    """Llama 3 takes a whole word that is a token, without merging."""
    model = BytePairs({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []}, False)
    assert model.parts("ab") == set()


def test_unknown_characters_stay_as_unlikely() -> None:
    tokens = Tokens.read(json.loads(trained(unigram).to_str()))
    scores = {number: score for number, (_, score) in enumerate(tokens.model.data["vocab"])}  # type: ignore[attr-defined]
    assert min(scores, key=lambda number: scores[number]) in tokens.always


def test_a_character_without_a_piece_of_its_own_keeps_those_that_hold_it() -> None:
    data = {"type": "WordPiece", "vocab": {"[U]": 0, "a": 1, "ab": 2, "ac": 3, "##c": 4}, "unk_token": "[U]"}
    data["continuing_subword_prefix"] = "##"
    tokens = Tokens.read({"model": data})
    assert {tokens.names[number] for number in tokens.always} == {"[U]", "a", "ab", "##c"}


def test_ids_around_a_text_are_renumbered() -> None:
    dense = for_transformers(word_piece)
    tokens = Tokens.of(dense)
    kept = np.array(sorted(tokens.always | tokens.with_parts(dense("the dog")["input_ids"])))
    renumbering = Renumbering(kept, len(dense))
    smaller = Tokenizer.from_str(json.dumps(tokens.cut(renumbering.new)))
    assert kept[smaller.encode("the dog <tool>").ids].tolist() == dense("the dog <tool>")["input_ids"]


def test_bert_s_way_to_say_what_is_around_a_text() -> None:
    data = json.loads(trained(word_piece).to_str())
    data["post_processor"] = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    tokens = Tokens.read(data)
    moved = tokens.cut(lambda number: number + 7 if number in (0, 2) else None if number > 10 else number)
    assert moved["post_processor"] == {"type": "BertProcessing", "sep": ["</s>", 9], "cls": ["<s>", 7]}


@pytest.mark.parametrize(
    ("names", "token", "held"),
    [
        ("latin", b"caf\xc3\xa9 12!", True),
        ("latin", "бы".encode(), False),
        ("latin+cyrillic", "бы".encode(), True),
        ("latin", b"\xc3", True),  # é begins so
        ("latin", b"\xd0", False),  # only Cyrillic letters begin so
        ("cyrillic", b" \xd0", True),
        ("greek", "😀".encode(), True),
        ("greek", b"\x9f\x98\x80", True),
        ("han", "漢".encode()[1:], True),
    ],
)
def test_scripts(names: str, token: bytes, held: bool) -> None:
    assert Scripts(names.split("+")).hold(token) is held


def test_a_byte_level_token_stands_for_its_bytes() -> None:
    tokens = Tokens.read(json.loads(trained(byte_level).to_str()))
    numbers = trained(byte_level).encode(" été", add_special_tokens=False).ids
    assert b"".join(map(tokens.text, numbers)) == " été".encode()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "of the kind WordLevel"),
        ({"type": "Runes"}, "of the kind 'Runes', of which vocabulary knows nothing"),
    ],
)
def test_kinds_that_cannot_lose_tokens(model: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Tokens.read({"model": model})
