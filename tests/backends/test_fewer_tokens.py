"""A model that lost tokens, in files of other formats: their tokens have the ids that its own tokenizer gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.backends.gguf.check import SAMPLE_TEXTS, _run
from fxprune.backends.onnx.runtime import OnnxDecoder
from fxprune.runtime.tolerances import ONNX_LOGITS_TOLERANCE
from fxprune.tests.word_models import SENTENCES, byte_level, for_transformers, sentence_piece_pairs

KEPT, *REST = SENTENCES
OTHERS = [*REST, *SAMPLE_TEXTS, "the <tool> of the fox"]


@dataclass(frozen=True)
class Cut:
    """A model, and what is left of it.

    Attributes:
        dense, smaller: their directories.
        kept: the ids, in the dense model, of the tokens of the smaller one, in their order.
    """

    dense: Path
    smaller: Path
    kept: list[int]


def cut(kind: Callable[[], Tokenizer], folder: Path) -> Cut:
    """A Llama with a tokenizer of a kind, of which only the tokens of a sentence stay."""
    tokenizer = for_transformers(kind)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 6, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=2, pad_token_id=1, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    fxprune.apply(folder / "dense", "vocabulary", calib=[KEPT], out=folder / "smaller")
    held = AutoTokenizer.from_pretrained(folder / "smaller").get_vocab()
    old = tokenizer.get_vocab()
    assert len(held) < len(old)
    return Cut(folder / "dense", folder / "smaller", [old[token] for token in sorted(held, key=lambda t: held[t])])


@pytest.fixture(scope="module", params=[byte_level, sentence_piece_pairs], ids=["byte-level", "pieces"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return cut(request.param, tmp_path_factory.mktemp("model"))


def test_gguf(model: Cut, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="comes with the extra fxprune[gguf]")
    pytest.importorskip("xllamacpp", reason="comes with the extra fxprune[test]")
    file = tmp_path / "model.gguf"
    fxprune.export(model.smaller, file, format="gguf")
    tokenizer = AutoTokenizer.from_pretrained(model.smaller)
    fields = gguf.GGUFReader(file).fields
    said = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "bos_token_id", "eos_token_id")}
    assert said["tokens"] == tokenizer.convert_ids_to_tokens(range(len(model.kept)))
    assert (said["bos_token_id"], said["eos_token_id"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    texts = [KEPT, *OTHERS]
    asked: dict[str, Any] = {"file": str(file), "threads": 1, "prompt": [5], "expected": [], "texts": texts}
    found = _run("llama_cpp_process.py", [], json.dumps(asked), "llama.cpp fails")["tokens"]
    assert dict(zip(texts, found, strict=True)) == {text: tokenizer(text)["input_ids"] for text in texts}


@pytest.mark.parametrize("model", [byte_level], indirect=True, ids=["byte-level"])
def test_onnx(model: Cut, tmp_path: Path) -> None:
    fxprune.export(model.smaller, tmp_path / "out", optimize="none")
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model.dense, tmp_path / "out"))
    dense, decoder = AutoModelForCausalLM.from_pretrained(model.dense), OnnxDecoder(tmp_path / "out")
    kept = np.array(model.kept)
    assert kept[after(KEPT)["input_ids"]].tolist() == before(KEPT)["input_ids"]
    for text in (KEPT, *SAMPLE_TEXTS):
        ids = np.array([after(text)["input_ids"]])[:, :40]
        with torch.no_grad():
            expected = dense(torch.from_numpy(kept[ids])).logits[..., model.kept].numpy()
        np.testing.assert_allclose(decoder.logits(ids), expected, atol=ONNX_LOGITS_TOLERANCE, rtol=0)
