"""The tokenizer of a model as metadata of a GGUF file, from what the tokenizer itself says.

llama.cpp's own converter knows tokenizers by a checksum of what they make of a text. Here the rules are compared: how a
text is cut into words, which pieces are merged, what stands for a space. So a tokenizer that nobody else has is written
too, and one that llama.cpp has no code for is refused.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError

WITHOUT = "export with --format 'gguf{tokenizer=false}'; the file then takes token ids only"

SPACE = "▁"
"""What SentencePiece writes for a space."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens in llama.cpp."""

_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id",
            "seperator": "sep_token_id", "cls": "cls_token_id", "mask": "mask_token_id"}  # fmt: skip
"""Key in the file, as llama.cpp spells it -> attribute of a tokenizer of transformers."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as metadata.

    Attributes:
        metadata: key -> value.
        notes: where llama.cpp may cut a text otherwise than transformers, in words.
    """

    metadata: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def none(cls, rows: int) -> Vocabulary:
        """Of a file that takes token ids only."""
        return cls({"tokenizer.ggml.model": "no_vocab"}, (f"no tokenizer: it takes the ids 0 to {rows - 1}",))


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The metadata of a tokenizer.

    Args:
        tokenizer: of transformers.
        rows: of the embedding: the file has as many tokens.

    Raises:
        RequestError: llama.cpp has no code for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(f"{type(tokenizer).__name__} is no tokenizer of the library tokenizers", WITHOUT)
    data = json.loads(backend.to_str())
    kind = data["model"]["type"]
    read = {"BPE": _pairs, "Unigram": _unigram, "WordPiece": _word_pieces}.get(kind)
    if read is None:
        raise RequestError(f"the tokenizer is of the kind {kind}, which is not written for llama.cpp", WITHOUT)
    vocabulary, beyond = _within(tokenizer.get_vocab(), data, rows)
    texts = _texts(vocabulary, rows)
    kinds = _kinds(data, vocabulary, rows, tokenizer)
    model = read(data, texts, kinds)
    metadata = {**model, "tokenizer.ggml.token_type": kinds, **_special(tokenizer, rows), **_template(tokenizer)}
    return Vocabulary(metadata, (*beyond, *_notes(data, kinds)))


def _within(vocabulary: Mapping[str, int], data: dict[str, Any], rows: int) -> tuple[dict[str, int], list[str]]:
    """The tokens that the embedding has rows for, and what the user should know. The class of a tokenizer may add
    special tokens of which the model knows nothing; these are taken out of ``data`` too."""
    beyond = {text: number for text, number in vocabulary.items() if number >= rows}
    if not beyond:
        return dict(vocabulary), []
    added = {token["content"] for token in data["added_tokens"]}
    if rest := beyond.keys() - added:
        text = min(rest, key=lambda text: beyond[text])
        raise RequestError(
            f"the tokenizer has a token of id {beyond[text]}, and the embedding {rows} rows",
            f"give the model the tokenizer that belongs to it; or {WITHOUT}",
        )
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < rows]
    kept = {text: number for text, number in vocabulary.items() if number < rows}
    return kept, [f"left out, since the embedding has no rows for them: {', '.join(sorted(beyond))}"]


def fitting_name(name: str, metadata: Mapping[str, Any]) -> str:
    """The name of a model; "" where llama.cpp looks for tokens by it that the tokenizer lacks, and fails without them.

    Args:
        name: in lower or upper case.
        metadata: of the tokenizer.
    """
    held = metadata.get("tokenizer.ggml.tokens", ())
    for row in _table()["names"]:
        named = any(text in name.lower() for text in row["contains"])
        if named and not all(token in held for token in row["tokens"]):
            return ""
    return name


def _notes(data: Mapping[str, Any], kinds: list[int]) -> tuple[str, ...]:
    """Where llama.cpp's rules are narrower than those of the tokenizer."""
    notes = []
    if any(step["type"] == "NFC" for step in _steps(data["normalizer"])):
        notes.append("llama.cpp does not compose characters (NFC) before it cuts a text")
    if any(step["type"] == "Metaspace" and step["prepend_scheme"] != "never" for step in _steps(data["pre_tokenizer"])):
        notes.append("llama.cpp puts a space before a text that begins with one, too")
    if data["model"]["type"] == "BPE" and not _byte_level(data):
        if BYTE not in kinds:
            notes.append(
                "the tokenizer has no tokens for bytes: llama.cpp refuses a text with characters that it lacks"
            )
        if not _all_pairs(data["model"]):
            notes.append(
                "the merges leave out pairs that SentencePiece would list: llama.cpp may cut some words otherwise"
            )
    return tuple(notes)


def _all_pairs(model: Mapping[str, Any]) -> bool:
    """Whether every two pieces whose concatenation is a piece are merged, as SentencePiece and llama.cpp do."""
    pieces = model["vocab"].keys()
    merged = {tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]}
    return all(
        (text[:cut], text[cut:]) in merged
        for text in {left + right for left, right in merged}
        for cut in range(1, len(text))
        if text[:cut] in pieces and text[cut:] in pieces
    )


def _texts(vocabulary: Mapping[str, int], rows: int) -> list[str]:
    texts = [f"[PAD{number}]" for number in range(rows)]
    for text, number in vocabulary.items():
        texts[number] = text
    return texts


def _kinds(data: Mapping[str, Any], vocabulary: Mapping[str, int], rows: int, tokenizer: Any) -> list[int]:
    kinds = [UNUSED] * rows
    for number in vocabulary.values():
        kinds[number] = NORMAL
    for token in data["added_tokens"]:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    unknown = vocabulary.get(data["model"].get("unk_token"), getattr(tokenizer, "unk_token_id", None))
    if unknown is not None and not _byte_level(data):
        kinds[unknown] = UNKNOWN
    return kinds


def _special(tokenizer: Any, rows: int) -> dict[str, Any]:
    """Ids of tokens with a meaning, and which of them are put around a text."""
    ids = {f"tokenizer.ggml.{key}_token_id": getattr(tokenizer, name, None) for key, name in _SPECIAL.items()}
    around = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = around[:1] != bare[:1] and around[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
    last = around[-1:] != bare[-1:] and around[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id)
    found: dict[str, Any] = {key: value for key, value in ids.items() if value is not None and value < rows}
    if tokenizer.bos_token_id is None and tokenizer.cls_token_id is not None:
        found["tokenizer.ggml.bos_token_id"] = tokenizer.cls_token_id  # what llama.cpp begins a text with
    return {**found, "tokenizer.ggml.add_bos_token": first, "tokenizer.ggml.add_eos_token": last}


def _template(tokenizer: Any) -> dict[str, str]:
    template = getattr(tokenizer, "chat_template", None)
    return {"tokenizer.chat_template": template} if isinstance(template, str) and template else {}


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((Path(__file__).parent / "vocabularies.json").read_text(encoding="utf-8"))
    return table


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or a pre-tokeniser, one after the other."""
    if part is None:
        return []
    inner = part.get("pretokenizers") or part.get("normalizers") if part["type"] == "Sequence" else None
    return [part] if inner is None else [step for one in inner for step in _steps(one)]


def _byte_level(data: Mapping[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(data["pre_tokenizer"]))


def _pairs(data: Mapping[str, Any], texts: list[str], kinds: list[int]) -> dict[str, Any]:
    """Byte-pair encoding: over bytes, as in GPT-2, or over characters, as in SentencePiece."""
    model = data["model"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd:
        raise RequestError(f"the tokenizer has {odd[0]} {model[odd[0]]!r}, which llama.cpp does not know", WITHOUT)
    return _byte_pairs(data, texts) if _byte_level(data) else _piece_pairs(data, texts, kinds)


def _byte_pairs(data: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    _only(data["normalizer"], "NFC")
    model, patterns = data["model"], _word_patterns(data["pre_tokenizer"])
    held = _table()["word_patterns"]
    for row in _table()["byte_level"]:
        same = [held[name] for name in row["patterns"]] == patterns
        if same and row["ignore_merges"] == bool(model.get("ignore_merges")):
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            return {
                "tokenizer.ggml.model": _table()["models"]["byte_level"],
                "tokenizer.ggml.pre": row["name"],
                "tokenizer.ggml.tokens": texts,
                "tokenizer.ggml.merges": merges,
            }
    cut = " and ".join(map(repr, patterns)) or "nothing"
    raise RequestError(f"the tokenizer cuts a text by {cut}, which no pattern of llama.cpp is known to do", WITHOUT)


def _word_patterns(part: Mapping[str, Any] | None) -> list[str]:
    """The regular expressions that cut a text into words, in order."""
    patterns: list[str] = []
    for step in _steps(part):
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += [_table()["word_patterns"]["byte_level"]] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step.get("individual_digits"):
            patterns.append(_table()["word_patterns"]["digit"])
        elif step["type"] == "Split" and "Regex" in step["pattern"] and (step["behavior"], step["invert"]) in _CUTS:
            patterns.append(step["pattern"]["Regex"])
        else:
            raise _unknown_step("cuts words", step)
    return patterns


_CUTS = (("Isolated", False), ("Removed", True))
"""The two ways to say that a match is a word."""


def _piece_pairs(data: Mapping[str, Any], texts: list[str], kinds: list[int]) -> dict[str, Any]:
    """What SentencePiece does: the pair that makes the best piece is merged first. A piece is the better, the earlier
    it was merged in training."""
    prefixed = _space_prefix(data)
    order: dict[str, int] = {}
    for rank, pair in enumerate(data["model"]["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        order.setdefault(left + right, rank)
    for number, text in enumerate(texts):
        if kinds[number] == NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kinds[number] = BYTE
    return {
        "tokenizer.ggml.model": _table()["models"]["sentence_piece"],
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [-float(order.get(text, len(order))) for text in texts],
        "tokenizer.ggml.add_space_prefix": prefixed,
    }


def _space_prefix(data: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text whose spaces become :data:`SPACE`."""
    steps = [*_steps(data["normalizer"]), *_steps(data["pre_tokenizer"])]
    prefixed = replaced = False
    for step in steps:
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefixed = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            replaced = True
        elif step["type"] == "Metaspace" and step["replacement"] == SPACE:
            replaced, prefixed = True, step.get("prepend_scheme", "always") != "never"
        elif not (step["type"] == "Split" and step["behavior"] == "MergedWithPrevious"):
            raise _unknown_step("changes a text", step)
    if not replaced:
        raise RequestError("the tokenizer has neither bytes nor a sign for a space, and llama.cpp needs one", WITHOUT)
    return prefixed


def _unigram(data: Mapping[str, Any], texts: list[str], kinds: list[int]) -> dict[str, Any]:
    """SentencePiece's other kind: the most likely pieces of a word."""
    del kinds
    steps = _steps(data["pre_tokenizer"])
    space = next((step for step in steps if step["type"] == "Metaspace" and step["replacement"] == SPACE), None)
    others = [step for step in steps if step["type"] not in ("Metaspace", "WhitespaceSplit")]
    if space is None or others:
        raise _unknown_step("cuts words", data["pre_tokenizer"])
    scores = dict(data["model"]["vocab"])
    found: dict[str, Any] = {
        "tokenizer.ggml.model": _table()["models"]["unigram"],
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [float(scores.get(text, 0.0)) for text in texts],
        "tokenizer.ggml.add_space_prefix": space.get("prepend_scheme", "always") != "never",
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }
    for step in _steps(data["normalizer"]):
        if step["type"] == "Precompiled" and step.get("precompiled_charsmap"):
            found["tokenizer.ggml.precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
        elif step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"} and step["content"] in (" ", SPACE):
            found["tokenizer.ggml.remove_extra_whitespaces"] = True
        elif step["type"] != "Strip":
            raise _unknown_step("changes a text", step)
    return found


def _word_pieces(data: Mapping[str, Any], texts: list[str], kinds: list[int]) -> dict[str, Any]:
    """BERT's kind. llama.cpp marks beginnings of words, transformers what is none."""
    _only(data["normalizer"], "BertNormalizer")
    _only(data["pre_tokenizer"], "BertPreTokenizer")
    prefix = data["model"]["continuing_subword_prefix"]
    normal = (NORMAL, USER_DEFINED)

    def marked(text: str) -> str:
        return text[len(prefix) :] if text.startswith(prefix) else SPACE + text

    lower = any(step.get("lowercase") for step in _steps(data["normalizer"]))
    if not lower:
        raise RequestError("the tokenizer keeps capital letters, and llama.cpp's word-piece does not", WITHOUT)
    return {
        "tokenizer.ggml.model": _table()["models"]["word_piece"],
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [
            marked(text) if kind in normal else text for text, kind in zip(texts, kinds, strict=True)
        ],
        "tokenizer.ggml.token_type_count": 2,
    }


def _only(part: Mapping[str, Any] | None, *allowed: str) -> None:
    odd = next((step for step in _steps(part) if step["type"] not in allowed), None)
    if odd is not None:
        raise _unknown_step("changes or cuts a text", odd)


def _unknown_step(what: str, step: Any, longest: int = 120) -> RequestError:
    text = json.dumps(step, ensure_ascii=False)
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return RequestError(f"the tokenizer {what} by {text}, which llama.cpp does not know", WITHOUT)
