"""generate: windows are drawn from the model's distribution, and follow the user's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from fxprune.ir import FxpruneError, Plan, RequestError
from fxprune.passes.calibrate.generate import Generate
from fxprune.passes.calibrate.written_text import Joined, written_by
from fxprune.passes.score.fisher import Fisher
from fxprune.passes.state import State
from fxprune.runtime.streaming.block_runner import BlockRunner

from ...corpora import OneToken
from ...decoders import random_decoder, special_tokens
from ...states import decoder_state, run_passes

VOCAB = 11


def make(kind: str = "llama") -> Any:
    shared = special_tokens(VOCAB)
    config: Any = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **shared)
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, **shared
        )
    return random_decoder(config, 0.3, torch.float32)


def state_of(model: Any, text: Any = None) -> State:
    return decoder_state(model, calibration=text)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_follow_one_another_as_often_as_the_model_says(kind: str) -> None:
    """Counts of the third token, over all windows, against its probability given the two before it."""
    model = make(kind)
    written = written_by(BlockRunner(model), 3000, 3, torch.Generator().manual_seed(0))
    assert written.shape == (3000, 3)
    with torch.no_grad():
        expected = model(input_ids=written[:, :2]).logits[:, -1].softmax(-1).double()
    counts = torch.bincount(written[:, 2], minlength=VOCAB)
    spread = (expected * (1 - expected)).sum(0).sqrt()
    assert bool(((counts - expected.sum(0)).abs() <= 4.5 * spread + 1).all())
    assert torch.bincount(written[:, 0], minlength=VOCAB).min() > 200


def test_the_same_seed_writes_the_same() -> None:
    first, again, other = (
        run_generate(Generate(windows=5, length=7, seed=seed, batch=2)).windows(7) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def run_generate(step: Generate, text: Any = None) -> Any:
    state = state_of(make(), text)
    step.run(state)
    return state.data.calibration


def test_the_users_windows_come_first() -> None:
    corpus = run_generate(Generate(windows=5, length=7, first=2), OneToken())
    assert corpus.name == "the user's and generated text"
    whole = corpus.windows(6)
    assert whole.shape == (7, 6)
    assert (whole[:2] == 5).all()
    assert torch.equal(corpus.windows(6, 3), whole[:3])
    drawn = corpus.windows(6, seed=1)
    assert sorted(map(tuple, drawn[(drawn != 6).any(1)].tolist())) == sorted(map(tuple, whole[2:].tolist()))
    assert int((drawn == 6).all(1).sum()) == 2


def test_scores_are_computed_on_it() -> None:
    state = state_of(make())
    run_passes(state, Generate(windows=4, length=8), Fisher(ratio=0.5, samples=4, length=8))
    assert state.ledger.report["generate"] == {"windows": 4, "length": 8}
    assert state.subject.model.model.layers[0].mlp.down_proj.in_features == 12  # type: ignore[union-attr, index]


def after_pruning() -> None:
    state = state_of(make())
    state.ledger.plan = Plan()
    Generate().run(state)


def no_language_model() -> None:
    state = state_of(make())
    state.subject.model = torch.nn.Linear(2, 2)
    Generate().run(state)


def broken() -> None:
    state = state_of(make())
    state.subject.model.model.norm.weight.data.fill_(float("nan"))  # type: ignore[operator, union-attr]
    Generate(windows=2, length=3).run(state)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Generate(windows=0).check(), "generate: windows=0 is below 1"),
        (lambda: Generate(length=1).check(), "generate: length=1 is below 2"),
        (lambda: Generate(first=-1).check(), "generate: first=-1 is below 0"),
        (lambda: Generate(batch=0).check(), "generate: batch=0 is below 1"),
        (after_pruning, "generate: a pruning pass before it removed units already"),
        (no_language_model, "generate needs a causal language model; this is a Linear"),
        (
            lambda: Joined(None, 0, torch.zeros(3, 8)).windows(9),
            "length 9 is longer than the generated windows of 8 tokens",
        ),
        (
            lambda: Joined(OneToken(), 2, torch.zeros(3, 8, dtype=torch.int64)).windows(8, 6),
            "6 windows are needed, and there are 5: 2 of the calibration text and 3 generated",
        ),
    ],
)
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_logits_that_are_not_finite_are_a_failure() -> None:
    with pytest.raises(FxpruneError, match="the model's logits are not finite"):
        broken()
