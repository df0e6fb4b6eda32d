"""Requests that cannot be met are refused in its own words: too long windows, models without text, no numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from fxprune import api
from fxprune.ir.errors import RequestError
from fxprune.tracer.inputs.arguments import Arguments
from fxprune.tracer.inputs.batches import inputs_of_batches

from ...checkpoints import write_checkpoint
from ...corpora import word_tokenizer

WORDS = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}
GPT2 = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=64)
BERT = transformers.BertConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
)


def written(folder: Path, config: transformers.PreTrainedConfig, text: Path) -> str:
    source = write_checkpoint(folder, config)
    word_tokenizer(WORDS).save_pretrained(source)
    text.write_text(" ".join(list(WORDS)[i * i % 26] for i in range(400)), encoding="utf-8")
    return str(source)


@pytest.mark.parametrize("passes", ["taylor{length=32,samples=2}", "random,distill{length=32,steps=1}"])
def test_more_tokens_than_the_model_has_positions(passes: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    job = {"model": written(tmp_path / "source", GPT2, text), "passes": passes, "ratio": 0.5, "calib": str(text)}
    with pytest.raises(RequestError, match=r"length=32 is longer than the context of the model, 16 tokens") as caught:
        api.apply(**job, data=str(text) if "distill" in passes else None, out=str(tmp_path / "out"))
    assert "{length=16} or less" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "text.txt"]


def test_a_model_that_writes_no_text_has_no_perplexity(tmp_path: Path) -> None:
    source = tmp_path / "source"
    transformers.BertForSequenceClassification(BERT).save_pretrained(source)
    word_tokenizer(WORDS).save_pretrained(source)
    (tmp_path / "text.txt").write_text("a b c " * 100)
    with pytest.raises(RequestError, match="is a BertForSequenceClassification, which is no causal language model"):
        api.evaluate(str(source), str(tmp_path / "text.txt"), window=8)


def test_inputs_that_are_no_numbers_are_refused_and_masks_with_infinities_are_not() -> None:
    arguments = Arguments.of(nn.Linear(3, 2))
    x = torch.zeros(4, 3)
    x[2, 1] = float("nan")
    with pytest.raises(RequestError, match=r"batch 1 of 'calib': 'input' holds NaN, first in sample 2"):
        inputs_of_batches("calib", [torch.zeros(2, 3), x], arguments)
    masked = inputs_of_batches("calib", [torch.full((2, 3), float("-inf"))], arguments)
    assert masked.rows(2)[0]["input"].isinf().all()


def test_a_pair_of_inputs_and_labels_is_no_list_of_batches() -> None:
    arguments = Arguments.of(nn.Linear(3, 2))
    with pytest.raises(RequestError, match=r"batch 1 of 'calib': 'input' is int64\[4\], and that of batch 0 is"):
        inputs_of_batches("calib", (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), arguments)
    assert len(inputs_of_batches("calib", [torch.zeros(4, 3), torch.zeros(1, 3)], arguments).source) == 5


def test_a_directory_of_a_pruned_module_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").touch()
    for call in (api.trace, api.bench):
        with pytest.raises(RequestError, match="holds a pruned module") as caught:
            call(str(tmp_path))
        assert "fxprune.load" in caught.value.hint
