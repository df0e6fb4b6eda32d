"""Tables: what is said about a training."""

from __future__ import annotations

from fxprune.api.terminal.tables import remarks, trained


def test_a_training_is_a_line_with_its_loss_at_both_ends() -> None:
    losses = [3.0, 2.0, *[1.5] * 16, 1.0, 0.5]
    assert trained({"distill": {"loss": losses}, "taylor": {"scores": 1}, "finetune": {"loss": []}}) == [
        "distill: loss 2.5 to 0.75 in 20 steps"
    ]


def test_a_training_that_has_not_paid_is_said_to_be_that() -> None:
    (line,) = trained({"lora": {"loss": [0.02, 0.3, 0.16]}})
    advice = "the loss has not decreased: try a lower lr or more steps, or leave lora out"
    assert line == f"lora: loss 0.02 to 0.16 in 3 steps; {advice}"
    assert trained({"lora": {"loss": [0.5]}}) == ["lora: loss 0.5 to 0.5 in 1 steps"]


def test_remarks_are_a_line_for_each_pass_that_has_some() -> None:
    report = {
        "taylor": {},
        "compensate": {"notes": ["a: 5 too few", "b: 6 too few", "c: 7 too few"]},
        "x": {"notes": []},
    }
    assert remarks(report) == ["compensate: a: 5 too few; 2 more, see --json"]
    assert remarks({"compensate": {"notes": ["a: 5 too few"]}}) == ["compensate: a: 5 too few"]
