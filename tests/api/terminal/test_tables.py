"""Tables: what is said about a training, and about layers that went."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.api.terminal.dropped import dropped
from fxprune.api.terminal.tables import placements, remarks, trained


def test_a_training_is_a_line_with_its_loss_at_both_ends() -> None:
    losses = [3.0, 2.0, *[1.5] * 16, 1.0, 0.5]
    assert trained({"distill": {"loss": losses}, "taylor": {"scores": 1}, "finetune": {"loss": []}}) == [
        "distill: loss 2.500 to 0.7500 in 20 steps"
    ]


def test_a_training_that_has_not_paid_is_said_to_be_that() -> None:
    (line,) = trained({"lora": {"loss": [0.02, 0.02, *[0.3] * 16, 0.16, 0.16]}})
    advice = "the loss has not decreased: try a lower lr or more steps, or leave lora out"
    assert line == f"lora: loss 0.02000 to 0.1600 in 20 steps; {advice}"
    assert trained({"lora": {"loss": [5.0, 5.338]}}) == ["lora: loss 5.000 to 5.338 in 2 steps"], "too few to say more"


def test_remarks_are_a_line_for_each_pass_that_has_some() -> None:
    report = {
        "taylor": {},
        "compensate": {"notes": ["a: 5 too few", "b: 6 too few", "c: 7 too few"]},
        "x": {"notes": []},
    }
    assert remarks(report) == ["compensate: a: 5 too few; 2 more, see --json"]
    assert remarks({"compensate": {"notes": ["a: 5 too few"]}}) == ["compensate: a: 5 too few"]


INFLUENCE = {"by": "influence", "dropped": [1, 3], "order": [3, 1], "scores": [0.5, 0.2, 0.25, 0.1]}
PART = {"module": "model.layers.0.mlp", "kind": "mlp", "with": []}


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        ({}, []),
        ({"by": "influence", "dropped": [], "scores": [0.5]}, []),
        (INFLUENCE, ["drop removed layers 1, 3 of 4 (influence 0.2, 0.1; of the others 0.25 to 0.5)"]),
        (
            {"by": "perplexity", "dropped": [1, 3], "order": [3, 1], "scores": [20.5, 31.25]},
            ["drop removed layers, in this order, 3, 1 (perplexity without: 20.5, 31.2)"],
        ),
        (
            {
                "sub_blocks": [PART],
                "sub_block_scores": {"by": "influence", "scores": {"model.layers.0.mlp": 0.01, "b": 0.5}},
            },
            ["drop removed model.layers.0.mlp (influence 0.01; of the others 0.5)"],
        ),
        (
            {
                **INFLUENCE,
                "sub_blocks": [PART],
                "sub_block_scores": {"by": "perplexity", "scores": {"model.layers.0.mlp": 12.0}},
            },
            [
                "drop removed layers 1, 3 of 4 (influence 0.2, 0.1; of the others 0.25 to 0.5)",
                "drop removed model.layers.0.mlp, numbered without these layers (perplexity without: 12)",
            ],
        ),
    ],
)
def test_layers_and_parts_that_went_are_named_with_their_scores(entry: dict[str, Any], lines: list[str]) -> None:
    assert dropped({"wanda": {"removed": {}}, "drop": entry}) == lines


FITS = "cpu, float32; all weights in memory"


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ([], []),
        ([("a", f"{FITS}: 3 MB of 2 GB free")], [f"{FITS}: 3 MB of 2 GB free"]),
        ([("a", f"{FITS}: 3 MB of 2 GB free"), ("b", f"{FITS}: 4 MB of 2 GB free")], [FITS]),
        ([("a", "cuda:0, bfloat16, as asked"), ("b", "cuda:0, bfloat16, as asked")], ["cuda:0, bfloat16, as asked"]),
        (
            [("a", f"{FITS}: 3 MB"), ("b", "cpu, float32; disk: 9 GB"), ("c", f"{FITS}: 4 MB")],
            [f"a, c: {FITS}", "b: cpu, float32; disk: 9 GB"],
        ),
    ],
)
def test_a_place_is_named_once(found: list[tuple[str, str]], lines: list[str]) -> None:
    assert [str(text) for text in placements(found)] == lines
