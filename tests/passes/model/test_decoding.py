"""Decoding step by step, whatever a model calls its cache."""

from __future__ import annotations

import inspect

import pytest
import torch

from fxprune.passes.model.forward import decoded
from fxprune.passes.model.measure import tokens_per_second
from fxprune.runtime.streaming.block_runner import BlockRunner

from ...families import causal_lm

FAMILIES = {
    "llama": ("past_key_values", "cache"), "mamba": ("cache_params", "cache"), "rwkv": ("state",), "openai-gpt": (),
}  # fmt: skip
"""What caches are called: up to transformers 5.23, and from 5.24 on."""


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize(("family", "caches"), FAMILIES.items())
def test_tokens_read_in_pieces_give_the_logits_of_all_at_once(family: str, caches: tuple[str, ...]) -> None:
    model = causal_lm.tiny_model(family).float()
    ids = torch.randint(3, causal_lm.VOCAB, (1, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        first, state = decoded(model, ids[:, :3])
        known = [name for name in caches if name in inspect.signature(model.forward).parameters]
        assert list(state[0]) == known, "without a cache the tokens are the state"
        assert len(known) == bool(caches)
        pieces = [first]
        for at in range(3, 6):
            logits, state = decoded(model, ids[:, at : at + 1], state)
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-5)
    assert tokens_per_second(BlockRunner(model), causal_lm.VOCAB, prompt=4, new=2, repeats=1).new == 2
