"""What a pruning pass says where its options do otherwise than their words may suggest."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from fxprune.passes.score.magnitude import Magnitude

from ...decoders import random_decoder, special_tokens
from ...states import decoder_state, run_passes

LLAMA = LlamaConfig(
    hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=4, **special_tokens(37),
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "remarks"),
    [
        ({}, []),
        ({"layers": (0, 2)}, []),
        ({"layers": (1, 2), "multiple_of": 4}, []),
        ({"layers": (1, 30)}, ["layers=1:30 ends behind the last layer: 1:2 was pruned"]),
        (
            {"layers": (0, 1), "channels": True},
            ["layers does not limit channels, which no layer has for its own; channels=false spares them"],
        ),
        (
            {"multiple_of": 100_000},
            [
                "multiple_of=100000 leaves all groups that it is for whole, such as model.layers.0.mlp:width with 12 "
                "units"
            ],
        ),
        (
            {"multiple_of": 12, "channels": True},
            [
                "multiple_of=12 leaves 2 of 3 groups that it is for whole, such as model.layers.0.mlp:width with 12 "
                "units"
            ],
        ),
    ],
)
def test_options_that_do_otherwise_than_their_words_are_remarked_on(
    options: dict[str, Any], remarks: list[str]
) -> None:
    state = decoder_state(random_decoder(LLAMA, 0.4))
    run_passes(state, Magnitude(**{"ratio": 0.5, **options}))
    assert state.ledger.report["magnitude"].get("remarks", []) == remarks
