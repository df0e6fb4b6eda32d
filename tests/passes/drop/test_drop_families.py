"""Any architecture without the parts of its first layer, in whose cache models count positions, decodes as before."""

from __future__ import annotations

import pytest
import torch

from fxprune.ir import RequestError
from fxprune.passes.drop.sub_block_scores import sub_block_influence
from fxprune.passes.drop.sub_blocks import find_sub_blocks, taken_out
from fxprune.passes.model.blocks import find_blocks
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import trace_causal_lm

from ...families.causal_lm import NOT_SAVED, NOT_TRACED, names, tiny_model

SAMPLED = 48
"""Every so many families by default, the others in as many parts under the marker ``slow``."""

INSIDE = {
    "bert", "bert-generation", "big_bird", "bloom", "camembert", "cpmant", "data2vec-text", "deepseek_v4", "electra",
    "ernie", "git", "hrm_text", "hy_v4", "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
    "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "zaya",
}  # fmt: skip
"""They add to the stream inside the children of a layer, or not by a sum."""

NOT_DECODED = {
    "moshi": "decodes otherwise with a cache than without; an artifact of it would be refused",
    "musicgen": "reads several rows of tokens for one sample",
    "musicgen_melody": "reads several rows of tokens for one sample",
    "prophetnet": "counts positions in its own way and refuses to go on",
    "rwkv": "its state is filled by what goes",
}
FAMILIES = [name for name in names() if name not in NOT_TRACED and name not in NOT_SAVED and name not in NOT_DECODED]
PARTS = [
    pytest.param(FAMILIES[part::SAMPLED], marks=() if part == 0 else pytest.mark.slow, id=f"part{part}")
    for part in range(SAMPLED)
]


@pytest.mark.parametrize("families", PARTS)
def test_without_the_parts_of_the_first_layer(families: list[str]) -> None:
    tokens = torch.randint(3, 130, (2, 6), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
    assert families
    for name in families:
        model = tiny_model(name)
        graph = trace_causal_lm(model).graph
        try:
            parts = find_sub_blocks(BlockRunner(model), find_blocks(model, graph), graph, tokens)
        except RequestError:
            assert name in INSIDE
            continue
        assert name not in INSIDE
        assert all(0 <= score <= 2 for score in sub_block_influence(BlockRunner(model), parts, tokens)), name
        with taken_out(model, [part for part in parts if part.layer == 0]), torch.no_grad():
            cached, uncached = (model.generate(tokens, use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, uncached), name
