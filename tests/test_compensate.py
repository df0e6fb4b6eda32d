"""compensate: the closed form is the optimum, what is not determined stays, and sequential refitting helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fxprune.demo import MODEL_DIR, text
from fxprune.ir import FxpruneError, RequestError
from fxprune.passes.base import State
from fxprune.passes.compensate import Compensate, consumers, observe
from fxprune.passes.couple import couple
from fxprune.passes.least_squares import Moments, refit
from fxprune.passes.magnitude import Magnitude
from fxprune.passes.manager import run_pipeline
from fxprune.passes.measure import perplexity
from fxprune.passes.random import Random
from fxprune.passes.registry import ANALYSES
from fxprune.tracer.export import trace_causal_lm
from fxprune.tracer.text import from_string

VOCAB = 53


class Windows:
    name = "random"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        return torch.randint(VOCAB, (count or 4, length), generator=torch.Generator().manual_seed(seed or 0))


def make(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    shared: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config: Any = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **shared)
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            **shared,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def state_of(model: Any) -> State:
    traced = trace_causal_lm(model)
    return State(traced.graph, model, calibration=Windows(), example=traced.example)


def run(state: State, *passes: Any) -> State:
    run_pipeline(passes, state, analyses=ANALYSES, verify=lambda _graph: None)
    return state


def moments(x: torch.Tensor, y: torch.Tensor) -> Moments:
    found = Moments.empty(x.shape[1], y.shape[1])
    for part, wanted in zip(x.split(7), y.split(7), strict=True):
        found.add(part, wanted)
    return found


def test_without_damping_it_is_the_least_squares_optimum() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    expected = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0].T
    found = refit(moments(x, y), torch.zeros(5, 9), damping=0.0)
    assert np.abs(found.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()


def test_permuting_the_inputs_permutes_the_answer() -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = (torch.randn(n, 9, generator=generator, dtype=torch.float64) for n in (40, 5))
    y = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    plain = refit(moments(x, y), w, 0.05)
    assert torch.allclose(refit(moments(x[:, order], y), w[:, order], 0.05), plain[:, order], rtol=0, atol=1e-12)


def test_damping_keeps_what_the_data_leave_open() -> None:
    x = torch.zeros(8, 4, dtype=torch.float64)
    x[:, 0] = 1
    w = torch.arange(8, dtype=torch.float64).reshape(2, 4)
    found = refit(moments(x, x @ w.T + 3), w, 0.01)
    assert torch.allclose(found[:, 1:], w[:, 1:])
    assert torch.allclose(found[:, 0], w[:, 0] + 3, atol=0.01)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("channels", [False, True])
def test_every_refitted_map_is_the_optimum_given_all_before_it(kind: str, channels: bool) -> None:
    """Weights and bias together: no linear map of the pruned inputs comes closer to the dense outputs."""
    model = make(kind)
    # What a layer norm with a bias puts out lies in a plane: with a constant beside it the moments are singular.
    damping = 1e-11 if kind == "gpt2" and channels else 0.0
    refit_all = Compensate(samples=12, length=16, damping=damping)
    state = run(state_of(model), Random(ratio=0.5, channels=channels), refit_all)
    assert state.plan is not None
    assert state.original is not None
    tokens = Windows().windows(16, 12)
    found, _ = consumers(state)
    assert len(found) >= 4
    for consumer in found:
        x, y = observe(model, consumer.path, tokens)
        _, dense = observe(state.original, consumer.path, tokens)
        kept = state.plan.slices.get((consumer.tensor, 1 - consumer.inputs))
        dense = dense if kept is None else dense[:, kept]
        ones = np.ones((len(x), 1)) if model.get_submodule(consumer.path).bias is not None else np.ones((len(x), 0))
        design = np.concatenate([x.numpy(), ones], axis=1)
        best = design @ np.linalg.lstsq(design, dense.numpy(), rcond=None)[0]
        reached, possible = (float(((a - dense.numpy()) ** 2).sum()) for a in (y.numpy(), best))
        assert reached == pytest.approx(possible, rel=1e-6, abs=1e-12), consumer


def test_a_ratio_of_zero_changes_not_a_bit() -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(state_of(model), Magnitude(ratio=0.0), Compensate(samples=2, length=8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_bias_makes_the_mean_output_the_dense_one() -> None:
    model = make("gpt2")
    state = run(state_of(model), Random(ratio=0.5, heads="off"), Compensate(method="bias", samples=6, length=16))
    assert state.original is not None
    tokens = Windows().windows(16, 6)
    for path in state.report["compensate"]["refitted"]:
        module = path.removesuffix(".weight")
        assert torch.allclose(
            observe(model, module, tokens)[1].mean(0), observe(state.original, module, tokens)[1].mean(0)
        )


def test_it_helps_a_trained_model() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    held_out = from_string("evaluation", text("evaluation"), tokenizer).windows(128, 40)
    values = []
    for passes in ((Magnitude(),), (Magnitude(), Compensate())):
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
        state = state_of(model)
        state.calibration = from_string("recovery", text("recovery"), tokenizer)
        run(state, *passes)
        values.append(perplexity(model, held_out).value)
    assert values[1] < values[0]


def broken() -> State:
    state = state_of(make())
    assert state.original is None
    run(state, Random(), Compensate(samples=2, length=8))
    state.original.model.layers[0].mlp.down_proj.weight.data.fill_(float("nan"))  # type: ignore[union-attr]
    return state


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: run(state_of(make()), Compensate()), "nothing to make up for"),
        (lambda: Compensate(damping=-1.0).check(), "damping -1.0 is negative"),
        (lambda: Compensate(samples=0).check(), "samples 0 is below 1"),
        (lambda: run(state_of(make()), Random(), Compensate(method="bias", samples=2)), "has no bias to correct"),
        (lambda: run(state_of(make()), Random(), Compensate(damping=0.0, samples=1, length=4)), "; 4 tokens for 18"),
        (lambda: Compensate(samples=2, length=8).run(broken()), "are not finite"),
    ],
)  # fmt: skip
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_too_little_text_is_said() -> None:
    state = run(state_of(make()), Random(), Compensate(samples=1, length=4))
    assert state.report["compensate"]["notes"][0].endswith("4 tokens for 18 unknowns; damping holds the rest")


def test_without_text_it_is_refused() -> None:
    state = state_of(make())
    state.calibration = None
    state.coupling = couple(state.graph)
    with pytest.raises(RequestError, match="compensate needs calibration text"):
        run(state, Random(), Compensate())
