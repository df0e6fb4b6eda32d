"""Tokenizers in a file, by their own rules: llama.cpp cuts texts as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from fxprune.backends.gguf.check import SAMPLE_TEXTS, _run
from fxprune.backends.gguf.vocabulary import _table, fitting_name, read_vocabulary
from fxprune.backends.gguf.written_file import Contents, write_contents
from fxprune.demo import text
from fxprune.ir.errors import RequestError

from .models import VOCABULARY, decoder, described, gguf, tokenizer

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
OF_BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}

TEXTS = [
    *SAMPLE_TEXTS, "Hello World! I'LL go; WE'RE HERE, he'd say: it's 3.14159.", "x=1;\n\n\n  if (a&&b) { c++; }\r\n\t",
    "tab\tnew\nline  ", "“quotes” — dash… ½ ²", "CamelCaseWords HTTPServer", "<s>hi</s>",
]  # fmt: skip

CORPUS = [*text("calibration")[:20_000].split("\n"), *[" ".join(SAMPLE_TEXTS)] * 5]


def byte_level(names: list[str], ignore_merges: bool) -> Tokenizer:
    made = Tokenizer(kinds.BPE(ignore_merges=ignore_merges))
    steps: list[Any] = []
    for name in names:
        if name == "gpt2":
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
        elif name == "digit":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(pre_tokenizers.Split(Regex(_table()["word_patterns"][name]), "isolated"))
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(SPECIAL.values())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def pieces(prefix: bool) -> Tokenizer:
    """Pairs as SentencePiece lists them: all that make a piece, the best piece first; with tokens for bytes."""
    made = Tokenizer(kinds.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    data = json.loads(made.to_str())
    held = data["model"]["vocab"]
    made_of_several = sorted((number, text) for text, number in held.items() if len(text) > 1 and text not in special)
    data["model"]["merges"] = [
        [text[:cut], text[cut:]]
        for _, text in made_of_several
        for cut in range(1, len(text))
        if text[:cut] in held and text[cut:] in held
    ]
    data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
    data["pre_tokenizer"] = None
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    return tokenizer


def unigram() -> Tokenizer:
    """Pieces with scores, the same each time. None repeats a letter: two orders of such pieces are equally likely."""
    held = json.loads(pieces(prefix=True).to_str())["model"]["vocab"]
    kept = [text for text in held if not text.startswith("<") and (len(text) == 1 or len(set(text)) > 1)]
    scored = [(text, 0.0) for text in SPECIAL.values()] + [(text, -3 - n / 50) for n, text in enumerate(kept)]
    made = Tokenizer(kinds.Unigram(scored, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(list(SPECIAL.values()))
    return made


def word_pieces() -> Tokenizer:
    made = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


WITH_BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def with_bos() -> Tokenizer:
    made = byte_level(["gpt2"], False)
    made.post_processor = WITH_BOS
    return made


KINDS: dict[str, tuple[Callable[[], Tokenizer], str, str]] = {
    **{
        row["name"]: (lambda row=row: byte_level(row["patterns"], row["ignore_merges"]), "gpt2", row["name"])
        for row in _table()["byte_level"]
    },
    "a first token": (with_bos, "gpt2", "gpt-2"),
    "pieces": (lambda: pieces(prefix=True), "llama", "default"),
    "pieces without a first space": (lambda: pieces(prefix=False), "llama", "default"),
    "unigram": (unigram, "t5", "default"),
    "word-piece": (word_pieces, "bert", "default"),
}


def cut_by_llama_cpp(wrapped: PreTrainedTokenizerFast, folder: Path, rows: int, texts: list[str]) -> list[Any]:
    made = described(decoder("llama", vocab_size=rows)).contents
    plain = {key: value for key, value in made.metadata.items() if not key.startswith("tokenizer.")}
    contents = Contents(made.name, {**plain, **read_vocabulary(wrapped, rows).metadata}, made.tensors)
    write_contents(folder / "model.gguf", contents, "float32", gguf)
    asked = {"file": str(folder / "model.gguf"), "threads": 1, "prompt": [5, 6], "expected": [7], "texts": texts}
    found: list[Any] = _run("llama_cpp_process.py", [], json.dumps(asked), "llama.cpp fails")["tokens"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_equal_tokens(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="comes with the extra fxprune[test]")
    make, model, words = KINDS[kind]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=make(), **(OF_BERT if kind == "word-piece" else SPECIAL))
    rows = len(wrapped) + 3  # an embedding may have rows that no token uses
    written = read_vocabulary(wrapped, rows).metadata
    assert (written["tokenizer.ggml.model"], written["tokenizer.ggml.pre"]) == (model, words)
    assert len(written["tokenizer.ggml.tokens"]) == len(written["tokenizer.ggml.token_type"]) == rows
    texts = [one for one in TEXTS if not (kind == "word-piece" and "한국어" in one)]
    found = dict(zip(texts, cut_by_llama_cpp(wrapped, tmp_path, rows, texts), strict=True))
    assert found == {one: wrapped(one)["input_ids"] for one in texts}


def changed(**entries: Any) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with other entries in its JSON."""
    data = json.loads(tokenizer().backend_tokenizer.to_str())
    for name, value in entries.items():
        if isinstance(value, dict) and name == "model":
            data["model"] |= value
        else:
            data[name] = value
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **SPECIAL)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
ODD_WORDS = {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False}
KEPT_BEFORE = {**ODD_WORDS, "behavior": "MergedWithPrevious"}
WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
CASED = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": False}

REFUSED = [
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [ODD_WORDS, BYTES]}}, r"cuts a text by '\[a-z\]\+'"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [KEPT_BEFORE, BYTES]}}, "cuts words by .*WithPrevious"),
    ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "cuts words by .*add_prefix_space"),
    ({"normalizer": {"type": "Lowercase"}}, "by {\"type\": \"Lowercase\"}"),
    ({"pre_tokenizer": None}, "neither bytes nor a sign for a space"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "changes a text by .*Whitespace"),
    ({"model": {"end_of_word_suffix": "</w>"}}, "has end_of_word_suffix '</w>'"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), REFUSED, ids=[row[1] for row in REFUSED])
def test_rules_that_llama_cpp_lacks_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_vocabulary(changed(**entries), VOCABULARY)
    assert "tokenizer=false" in caught.value.hint


def test_other_kinds_are_refused() -> None:
    words = Tokenizer(kinds.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(RequestError, match="of the kind WordLevel"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), 2)
    cased = word_pieces()
    cased.normalizer = normalizers.BertNormalizer(lowercase=False)
    with pytest.raises(RequestError, match="keeps capital letters"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=cased, **OF_BERT), 400)
    with pytest.raises(RequestError, match="object is no tokenizer of the library tokenizers"):
        read_vocabulary(object(), 2)


def test_tokens_without_a_row() -> None:
    added = tokenizer()
    added.add_special_tokens({"pad_token": "<pad>"})
    vocabulary = read_vocabulary(added, VOCABULARY)
    assert len(vocabulary.metadata["tokenizer.ggml.tokens"]) == VOCABULARY
    assert "tokenizer.ggml.padding_token_id" not in vocabulary.metadata
    assert any("<pad>" in note for note in vocabulary.notes)
    with pytest.raises(
        RequestError, match=f"has a token of id {VOCABULARY - 2}, and the embedding {VOCABULARY - 2} rows"
    ):
        read_vocabulary(tokenizer(), VOCABULARY - 2)


def test_what_llama_cpp_does_otherwise_is_said() -> None:
    composed = changed(normalizer={"type": "NFC"})
    assert any("NFC" in note for note in read_vocabulary(composed, VOCABULARY).notes)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=unigram(), **SPECIAL)
    assert any("begins with" in note for note in read_vocabulary(wrapped, len(wrapped)).notes)
    few = Tokenizer(kinds.BPE({"<unk>": 0, "▁": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "bc": 6, "abc": 7},
                              [("a", "b"), ("b", "c"), ("ab", "c")], unk_token="<unk>"))  # fmt: skip
    few.normalizer = normalizers.Replace(" ", "▁")
    notes = read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=few, unk_token="<unk>"), 8).notes
    assert any("no tokens for bytes" in note for note in notes)
    assert any("leave out pairs" in note for note in notes)


def test_a_name_by_which_llama_cpp_looks_for_tokens() -> None:
    metadata = read_vocabulary(tokenizer(), VOCABULARY).metadata
    assert fitting_name("Phi-3-mini-pruned", metadata) == ""
    all_there = {"tokenizer.ggml.tokens": ["</s>", "<unk>", "<s>", "<|endoftext|>"]}
    assert fitting_name("Phi-3-mini-pruned", all_there) == "Phi-3-mini-pruned"
    assert fitting_name("llama", metadata) == "llama"


def test_a_template_for_chats_is_kept() -> None:
    talking = tokenizer()
    talking.chat_template = "{{ messages[0].content }}"
    assert read_vocabulary(talking, VOCABULARY).metadata["tokenizer.chat_template"] == talking.chat_template
