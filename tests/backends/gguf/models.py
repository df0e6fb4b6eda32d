"""Tiny decoders with the widths that pruning leaves, one per architecture, and their tokenizer."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fxprune.backends.gguf.architectures import architecture, find_architecture
from fxprune.backends.gguf.contents import Described, describe
from fxprune.backends.gguf.vocabulary import read_vocabulary

gguf = pytest.importorskip("gguf", reason="comes with the extra fxprune[gguf]")

SPECIAL = ("<unk>", "<s>", "</s>")
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "n"), ("i", "n"), ("Ġ", "a")]
LETTERS = [
    letter if letter != " " else "Ġ" for letter in string.digits + string.ascii_letters + string.punctuation + " "
]
VOCABULARY = len(SPECIAL) + len(LETTERS) + len(MERGES)

NARROW = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Fewer heads than the width would say, as after pruning."""

SQUARE = {**NARROW, "hidden_size": 96}
"""As many heads as the width says, so that only the inner width is smaller."""

OWN: dict[str, dict[str, Any]] = {
    "falcon": {
        "new_decoder_architecture": True, "num_kv_heads": 3, "ffn_hidden_size": 44, "bias": False, "alibi": False,
        "head_dim": None,
    },
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "gpt2": {"n_inner": 44},
    "gpt_neox": {"num_key_value_heads": None, "head_dim": None},
    "granite": {
        "embedding_multiplier": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 3.0,
    },
    "cohere": {"logit_scale": 0.5},
    "smollm3": {"num_hidden_layers": 4},
    "stablelm": {"use_qkv_bias": True},
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs over ASCII, so that every token is a whole character."""
    tokens = [*SPECIAL, *LETTERS, *("".join(pair) for pair in MERGES)]
    made = Tokenizer(models.BPE({text: number for number, text in enumerate(tokens)}, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def config(model_type: str, **changes: Any) -> Any:
    """The configuration of a tiny model of an architecture."""
    row = architecture(model_type)
    widths = SQUARE if row is not None and row.square else NARROW
    values = {**widths, **OWN.get(model_type, {}), **changes}
    return AutoConfig.for_model(model_type, **{name: value for name, value in values.items() if value is not None})


def decoder(model_type: str, **changes: Any) -> Any:
    """A model of an architecture in float32, all of whose weights, norms and biases matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(model_type, **changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def described(model: Any, *, padded: bool = False) -> Described:
    """The file of a model."""
    text = model.config.get_text_config()
    vocabulary = read_vocabulary(tokenizer(), VOCABULARY).metadata
    row = find_architecture(text, text.model_type)
    return describe(model, row, vocabulary, gguf, padded=padded, name=text.model_type)


def saved(folder: Path, model: Any) -> Path:
    """A model directory with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
