"""Tiny causal language models with random weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 40
"""Of the two models that are trained."""


def special_tokens(vocabulary: int) -> dict[str, Any]:
    """Fields of a configuration: ids that lie in a small vocabulary."""
    return {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def random_decoder(config: Any, deviation: float, dtype: torch.dtype = torch.float64) -> Any:
    """A model in eval mode, all parameters drawn from a normal distribution: none is zero or one, as after `__init__`.

    Args:
        config: in transformers' form.
        deviation: the standard deviation.
        dtype: of all parameters.
    """
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, deviation)
    return model


def llama(tied: bool = False) -> LlamaForCausalLM:
    """Two layers that learn in a few steps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    """Two layers that learn in a few steps, with biases and with weights that lie the other way round."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.2, bos_token_id=None, eos_token_id=None)).eval()
