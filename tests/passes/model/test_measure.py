"""Perplexity, sizes and speed: against sums done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.model.measure import byte_count, parameter_count, perplexity, tokens_per_second

from ...decoders import VOCABULARY, llama


def windows(count: int = 5, length: int = 7) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def test_perplexity_is_the_exponential_of_the_mean_over_predicted_tokens() -> None:
    model = llama().double().eval()
    ids = windows()
    # Every window alone: log p(next token), by hand.
    total = 0.0
    for window in ids:
        with torch.no_grad():
            logs = model(window[None]).logits[0].log_softmax(-1)
        total -= sum(logs[i, window[i + 1]].item() for i in range(6))
    result = perplexity(model, ids, batch=2)
    assert (result.tokens, result.windows) == (30, 5)
    assert result.nll == pytest.approx(total / 30, rel=1e-12)
    assert result.value == pytest.approx(math.exp(total / 30), rel=1e-12)


def test_perplexity_of_equal_logits_is_the_vocabulary() -> None:
    def model(input_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*input_ids.shape, VOCABULARY, dtype=torch.float16)

    assert perplexity(model, windows()).value == pytest.approx(VOCABULARY, rel=1e-6)


def test_measuring_leaves_the_mode_as_it_was_and_uses_eval_mode() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2))
    reference = perplexity(model.eval(), windows())
    model.train()  # its dropout of 0.1 would show
    assert perplexity(model, windows()) == reference
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(0, 7), (3, 1), (7,)])
def test_nothing_to_predict_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="have no token to predict"):
        perplexity(llama(), torch.zeros(shape, dtype=torch.int64))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    def model(input_ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        logits[input_ids[:, 0] == 9] = math.nan
        return logits

    ids = windows(6)
    ids[:, 0] = torch.tensor([0, 1, 9, 2, 9, 3])
    with pytest.raises(FxpruneError) as caught:
        perplexity(model, ids, batch=2)
    assert caught.value.message == "perplexity is not finite: the loss of window 2 is nan (2 of 6 windows)"
    assert caught.value.exit_code == 1


def test_a_perplexity_that_overflows_is_an_error() -> None:
    def model(input_ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*input_ids.shape, 2)
        logits[..., 1] = 1000.0
        return logits

    with pytest.raises(FxpruneError, match="perplexity is not finite: the mean loss is 1000 nats per token"):
        perplexity(model, torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_count_once(tied: bool) -> None:
    model = llama(tied)
    block = 16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 24 + 2 * 16
    expected = 2 * block + 16 + (1 if tied else 2) * VOCABULARY * 16
    assert parameter_count(model) == expected
    assert byte_count(model) == 4 * expected
    assert byte_count(model.half()) == 2 * expected


def test_bytes_include_the_buffers_that_are_saved() -> None:
    module = torch.nn.BatchNorm1d(4)
    assert parameter_count(module) == 8
    assert byte_count(module) == 4 * 16 + 8


def test_speed_decodes_with_the_cache_and_leaves_the_warm_up_out() -> None:
    calls: list[tuple[tuple[int, ...], Any]] = []

    def step(ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        calls.append((tuple(ids.shape), cache))
        return torch.zeros(1, ids.shape[1], VOCABULARY), (cache or 0) + ids.shape[1]

    speed = tokens_per_second(step, VOCABULARY, prompt=6, new=2, repeats=3)
    assert calls == [((1, 6), None), ((1, 1), 6), ((1, 1), 7)] * 4
    assert (speed.prompt, speed.new, speed.repeats) == (6, 2, 3)


def test_speed_of_a_model() -> None:
    speed = tokens_per_second(llama(), VOCABULARY, prompt=6, new=2, repeats=3)
    for rate in (speed.prefill, speed.decode):
        assert 0 < rate.low <= rate.median <= rate.high


def test_cached_decoding_continues_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama().eval()
    seen: list[int] = []
    forward = model.forward

    def record(**inputs: Any) -> Any:
        cache = inputs.get("past_key_values")
        seen.append(0 if cache is None else cache.get_seq_length())
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", record)
    tokens_per_second(model, VOCABULARY, prompt=6, new=3, repeats=1)
    assert seen == [0, 6, 7, 8] * 2


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(RequestError, match="nothing to time: prompt 0, new 2, repeats 3, vocabulary 40"):
        tokens_per_second(llama(), VOCABULARY, prompt=0, new=2, repeats=3)
