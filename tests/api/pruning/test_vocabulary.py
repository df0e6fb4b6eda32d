"""The pass vocabulary from the call to the directory that it writes, and everything that it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.ir.errors import RequestError
from fxprune.tests.corpora import word_tokenizer
from fxprune.tests.word_models import SENTENCES, byte_level, for_transformers

CHAT = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
TEXT = [SENTENCES[0], SENTENCES[1]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose head is its own, with a chat template, an added token and more rows than tokens."""
    tokenizer = for_transformers(byte_level)
    tokenizer.chat_template = CHAT
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 6, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=2, pad_token_id=1, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    made.generation_config.suppress_tokens = [len(tokenizer) - 2, tokenizer(TEXT[0])["input_ids"][-2]]
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def smaller(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model with the tokens of a text alone."""
    out = tmp_path_factory.mktemp("smaller") / "out"
    applied = fxprune.apply(model, "vocabulary", calib=TEXT, out=out)
    (change,) = applied.groups
    assert change.to_json()["kind"] == "tokens"
    assert applied.report["vocabulary"]["kept_of_the_text"] == 1.0
    return out


def test_plain_transformers_computes_the_same_with_the_same_tokens(model: Path, smaller: Path) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model, smaller))
    dense, cut = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, smaller))
    old, new = before.get_vocab(), after.get_vocab()
    kept = torch.tensor([old[token] for token, _ in sorted(new.items(), key=lambda item: item[1])])
    assert len(kept) == len(new) == cut.config.vocab_size < len(old)
    for text in TEXT:
        ids = torch.tensor(after(text)["input_ids"])
        assert kept[ids].tolist() == before(text)["input_ids"]
        with torch.no_grad():
            assert torch.equal(cut(ids[None]).logits, dense(kept[ids][None]).logits[..., kept])
    other = "Übrigens: 漢字, 42 <tool> 😀"
    assert after.decode(after(other, add_special_tokens=False)["input_ids"]) == other
    assert len(after(other)["input_ids"]) >= len(before(other)["input_ids"])


def test_what_the_user_added_survives(model: Path, smaller: Path) -> None:
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model, smaller))
    said = [{"role": "user", "content": "the fox <tool>"}]
    assert after.apply_chat_template(said, tokenize=False) == before.apply_chat_template(said, tokenize=False)
    assert len(after.encode("<tool>", add_special_tokens=False)) == 1
    generation = json.loads((smaller / "generation_config.json").read_text())
    assert generation["eos_token_id"] == after.eos_token_id
    gone, stays = before.convert_ids_to_tokens([len(before) - 2, before(TEXT[0])["input_ids"][-2]])
    assert generation["suppress_tokens"] == [after.get_vocab()[stays]] != [before.get_vocab()[stays]]
    assert gone not in after.get_vocab()


def test_the_plan_removes_the_same_tokens_again(model: Path, smaller: Path, tmp_path: Path) -> None:
    fxprune.apply(model, plan=smaller, out=tmp_path / "out")
    for name in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json", "fxprune.plan"):
        assert (tmp_path / "out" / name).read_bytes() == (smaller / name).read_bytes()


def test_a_dry_run_and_later_passes_count_the_smaller_model(model: Path) -> None:
    text = ["the dog sleeps. " * 200]
    pipeline = "vocabulary{keep=tokens:400,multiple_of=64},taylor{samples=2,length=16,heads=off}"
    applied = fxprune.apply(model, pipeline, ratio=0.5, calib=text, dry_run=True)
    kept = {change.to_json()["kind"]: change.to_json()["after"] for change in applied.groups}
    assert kept == {"tokens": 448, "width": 12}


def test_scripts_need_no_text(model: Path) -> None:
    applied = fxprune.apply(model, "vocabulary{languages=latin}", dry_run=True)
    assert 257 < applied.report["vocabulary"]["tokens"]["after"] < applied.report["vocabulary"]["tokens"]["before"]


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("vocabulary{keep=tokens:9999}", r"asks for more than the \d+ tokens"),
        ("vocabulary{keep=tokens:3}", r"keep=tokens:3 is too few: \d+ tokens always stay"),
        ("vocabulary{keep=tokens:0}", "keep=tokens:0 cannot be read"),
        ("vocabulary{keep=words}", "keep=words cannot be read"),
        ("vocabulary{languages=klingon}", "'klingon' is no script of Unicode"),
        ("vocabulary{languages=tibetan}", "no token of more than one character is written in tibetan"),
        ("vocabulary{multiple_of=4096}", r"nothing to remove: all \d+ tokens stay"),
        ("vocabulary{multiple_of=4096}", "give a smaller multiple_of"),
        ("vocabulary,vocabulary{keep=tokens:300}", "tokens were removed already"),
        ("magnitude{ratio=0.5},vocabulary", "the passes before it have read or removed something"),
        ("vocabulary{keep=text,languages=latin}", "keep=text has no effect beside languages=latin"),
    ],
)
def test_requests_that_are_refused(model: Path, passes: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        fxprune.apply(model, passes, calib=TEXT, dry_run=True)
    assert re.search(said, f"{caught.value}\n{caught.value.hint}")


def test_a_multiple_is_not_blamed_for_scripts_that_keep_all() -> None:
    with pytest.raises(RequestError, match="nothing to remove: all") as caught:
        fxprune.apply("demo", "vocabulary{languages=latin,multiple_of=64}", dry_run=True)
    assert caught.value.hint == "leave the pass out: every token is of latin, or of no script; or give fewer scripts"


def test_a_text_is_needed(model: Path) -> None:
    with pytest.raises(RequestError, match=r"vocabulary\{keep=text\} needs calibration text"):
        fxprune.apply(model, "vocabulary", dry_run=True)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (lambda: word_tokenizer(["?", "the", "dog", "sleeps"]), "of the kind WordLevel"),
        (ByT5Tokenizer, "ByT5Tokenizer is written in Python"),
        (lambda: None, "came without a tokenizer"),
    ],
)
def test_tokenizers_that_are_refused(tokenizer: Callable[[], Any], said: str) -> None:
    given = tokenizer()
    config = LlamaConfig(
        vocab_size=len(given or TEXT[0]), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with pytest.raises(RequestError, match=said):
        fxprune.apply(LlamaForCausalLM(config), "vocabulary{languages=latin}", tokenizer=given, dry_run=True)
