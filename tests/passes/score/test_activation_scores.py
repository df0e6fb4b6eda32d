"""wanda, flap, activation and obs equal their formulas, computed here from whole arrays."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fxprune.ir import FxpruneError
from fxprune.ir.groups import Kind
from fxprune.passes.recover.compensate import Compensate
from fxprune.passes.score.activation import Activation
from fxprune.passes.score.fisher import Fisher
from fxprune.passes.score.flap import Flap
from fxprune.passes.score.obs import Obs
from fxprune.passes.score.wanda import Wanda
from fxprune.passes.select.select import select
from fxprune.passes.state import State

from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...nets import Plain
from ...states import decoder_state, module_state, run_passes

VOCAB = 37
TEXT = RandomTokens(VOCAB)
SHARED = special_tokens(VOCAB)
PASSES = (Wanda, Flap, Activation, Obs, Fisher)


def make(kind: str = "llama") -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 8}
    config: Any = transformers.LlamaConfig(**sizes, num_key_value_heads=4, head_dim=4, **SHARED)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_inner=12, n_layer=2, n_head=4, n_positions=64, **SHARED)
    if kind == "experts":
        config = transformers.MixtralConfig(
            **sizes, num_key_value_heads=4, head_dim=4, num_local_experts=4, num_experts_per_tok=2, **SHARED
        )
    model = random_decoder(config, 0.4)
    if kind == "experts":
        model.set_experts_implementation("batched_mm")
    return model


def group_of(state: State, name: str) -> Any:
    assert state.subject.coupling is not None
    return state.subject.coupling.groups[name]


def inputs_of(model: Any, path: str, tokens: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``[windows, length, k]`` by a plain hook."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    handle.remove()
    return seen[0].numpy()


READ = {
    "model.layers.0.mlp:width": ("model.layers.0.mlp.down_proj", 1),
    "model.layers.1.self_attn:kv_heads": ("model.layers.1.self_attn.o_proj", 8),
    "model.layers.1.self_attn:query_heads": ("model.layers.1.self_attn.o_proj", 4),
}


@pytest.mark.parametrize("name", READ)
def test_scores_equal_their_formulas(name: str) -> None:
    model = make()
    state, (path, width) = decoder_state(model), READ[name]
    group = group_of(state, name)
    x = inputs_of(model, path, TEXT.windows(8, 5))
    flat, w = x.reshape(-1, x.shape[-1]), model.get_submodule(path).weight.detach().numpy()
    wanda = np.abs(w).sum(0) * np.sqrt((flat**2).sum(0))
    flap = len(flat) * flat.var(0) * (w**2).sum(0)
    flap = flap if width == 1 else flap**2
    flap = (flap - flap.mean()) / flap.std(ddof=1)
    sizes = np.sqrt((x.reshape(*x.shape[:2], -1, width) ** 2).sum(-1))
    expected = {
        Wanda: wanda.reshape(-1, width).sum(1),
        Flap: flap.reshape(-1, width).mean(1),
        Activation: np.sqrt((sizes.mean(1) ** 2).sum(0)),
    }
    for kind, wanted in expected.items():
        found = kind(samples=5, length=8, batch=2).scores([group], state)[name]
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_fisher_is_half_the_mean_squared_derivative_by_a_switch() -> None:
    """Switches as a tensor of ones, one for every token and unit, and autograd."""
    model, ids = make(), TEXT.windows(8, 5)
    state = decoder_state(model)
    for name, (path, width) in READ.items():
        size = model.get_submodule(path).in_features
        switches = torch.ones(5, 8, size // width, dtype=torch.float64, requires_grad=True)

        def switched(_m: Any, args: Any, switches: Any = switches, width: int = width) -> Any:
            return (args[0] * switches.repeat_interleave(width, -1),)

        handle = model.get_submodule(path).register_forward_pre_hook(switched)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        handle.remove()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, switches)
        expected = gradient.square().sum((0, 1)) / (2 * 5 * 7)
        found = Fisher(samples=5, length=8, batch=2).scores([group_of(state, name)], state)[name]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def error_left(x: Any, w: Any, gone: list[int]) -> float:
    """Half the squared error of the best map without some inputs, by numpy's own least squares."""
    kept = [column for column in range(x.shape[1]) if column not in gone]
    y = x @ w.T
    best = x[:, kept] @ np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return 0.5 * float(((best - y) ** 2).sum())


def test_heads_go_by_the_error_that_the_rest_cannot_make_up_for() -> None:
    """One by one: the first is the best single one, the second the best beside it."""
    model = make()
    state, name = decoder_state(model), "model.layers.0.self_attn:kv_heads"
    tight = Obs(ratio=0.5, samples=12, length=16, damping=0.0, metric="outputs")
    scores = tight.scores([group_of(state, name)], state)[name]
    x = inputs_of(model, "model.layers.0.self_attn.o_proj", TEXT.windows(16, 12)).reshape(-1, 32)
    w = model.model.layers[0].self_attn.o_proj.weight.detach().numpy()
    columns = [list(range(8 * head, 8 * head + 8)) for head in range(4)]
    gone: list[int] = []
    for _ in range(2):
        costs = {
            head: error_left(x, w, list(itertools.chain(*(columns[h] for h in [*gone, head]))))
            for head in range(4)
            if head not in gone
        }
        gone.append(min(costs, key=lambda head: costs[head]))
        assert scores[gone[-1]] == pytest.approx(costs[gone[-1]], rel=1e-6)
    assert np.argsort(scores)[:2].tolist() == gone


def test_errors_count_as_the_loss_feels_them() -> None:
    """The first unit that goes: its error without it, by numpy, in the metric of the gradients, by autograd."""
    model, ids = make(), TEXT.windows(16, 12)
    state, name = decoder_state(model), "model.layers.1.mlp:width"
    scores = Obs(samples=12, length=16, damping=0.0, rounds=1000).scores([group_of(state, name)], state)[name]
    path = "model.layers.1.mlp.down_proj"
    x = inputs_of(model, path, ids).reshape(-1, 12)
    w = model.get_submodule(path).weight.detach().numpy()
    outputs: list[torch.Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _a, out: outputs.append(out))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    handle.remove()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    gradient = torch.autograd.grad(loss, outputs)[0].flatten(0, 1).numpy()
    metric = gradient.T @ gradient / (12 * 15) ** 2
    costs = []
    for unit in range(12):
        kept = [column for column in range(12) if column != unit]
        errors = x[:, kept] @ np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)[0] - x @ w.T
        costs.append(0.5 * float(np.einsum("ti,ij,tj->", errors, metric, errors)))
    assert int(np.argmin(scores)) == int(np.argmin(costs))
    assert scores.min() == pytest.approx(min(costs), rel=1e-6)


def test_each_key_value_head_loses_equally_many_query_heads() -> None:
    state, name = decoder_state(make()), "model.layers.0.self_attn:query_heads"
    group = group_of(state, name)
    keep = select([group], Obs(ratio=0.5, samples=6, length=8).scores([group], state), 0.5)[name]
    assert np.bincount(keep // 2, minlength=4).tolist() == [1, 1, 1, 1]


def test_sequential_scores_see_what_the_layers_before_became() -> None:
    model = make()
    state = decoder_state(model)
    assert state.subject.coupling is not None
    groups = [group for group in state.subject.coupling.groups.values() if group.kind in (Kind.KV_HEADS, Kind.WIDTH)]
    groups = [group for group in groups if group.frozen is None]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options: dict[str, Any] = {"ratio": 0.5, "samples": 12, "length": 16}
    sequential = Obs(**options).scores(groups, state)
    dense = Obs(**options, sequential=False).scores(groups, state)
    assert np.allclose(sequential[groups[0].name], dense[groups[0].name], rtol=1e-9)
    assert not np.allclose(sequential[groups[-1].name], dense[groups[-1].name], rtol=0.01)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def silence(model: Any, kind: str, unit: int) -> None:
    """Nothing that this unit of the first layer's feed-forward gives reaches its consumer."""
    with torch.no_grad():
        if kind == "llama":
            model.model.layers[0].mlp.up_proj.weight[unit] = 0
        elif kind == "experts":
            model.model.layers[0].mlp.experts.gate_up_proj[:, 12 + unit] = 0
        else:
            model.transformer.h[0].mlp.c_fc.weight[:, unit] = 0
            model.transformer.h[0].mlp.c_fc.bias[unit] = 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "experts"])
@pytest.mark.parametrize("score", PASSES)
def test_a_unit_that_gives_nothing_goes_first(score: Any, kind: str) -> None:
    model = make(kind)
    silence(model, kind, 7)
    state = decoder_state(model)
    options = {} if score is not Obs else {"rounds": 3}
    name = {
        "llama": "model.layers.0.mlp:width", "gpt2": "transformer.h.0.mlp:width",
        "experts": "model.layers.0.mlp.experts:width",
    }[kind]  # fmt: skip
    found = score(samples=6, length=8, **options).scores([group_of(state, name)], state)[name]
    assert int(np.argmin(found)) == 7
    if score is not Flap:  # its scores have a mean of 0
        assert found[7] == pytest.approx(0.0, abs=1e-9)
    assert np.sort(found)[1] > found[7] + 1e-6


@pytest.mark.parametrize("score", PASSES)
@pytest.mark.parametrize("channels", [False, True])
def test_they_prune_and_compensate_a_model(score: Any, channels: bool) -> None:
    model = make()
    state = decoder_state(model)
    chosen = score(ratio=0.5, samples=4, length=8, channels=channels)
    run_passes(state, chosen, Compensate(samples=8, length=16))
    assert model.model.layers[0].mlp.down_proj.weight.shape == (8 if channels else 16, 6)
    assert model(input_ids=TEXT.windows(8, 2)).logits.isfinite().all()


@pytest.mark.parametrize("score", PASSES)
def test_permuting_the_units_permutes_the_scores(score: Any) -> None:
    found = []
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for permuted in (False, True):
        model = make()
        mlp = model.model.layers[0].mlp
        if permuted:
            mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[order]
            mlp.up_proj.weight.data = mlp.up_proj.weight.data[order]
            mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
        state = decoder_state(model)
        name = "model.layers.0.mlp:width"
        found.append(score(samples=6, length=8).scores([group_of(state, name)], state)[name])
    np.testing.assert_allclose(found[1], found[0][order.numpy()], rtol=1e-6)


@pytest.mark.parametrize("score", PASSES)
def test_convolutions_are_scored_on_the_data_of_a_loss(score: Any) -> None:
    torch.manual_seed(0)
    model = Plain().double().eval()
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        model.features[0][1].weight[4] = 0
        model.features[0][1].bias[4] = 0
        model.features[3][1].weight[9] = 0
        model.features[3][1].bias[9] = 0
    state = module_state(model, x, losses=[lambda m: m(x).sum()])
    assert state.subject.coupling is not None
    groups = {g.size: g for g in state.subject.coupling.groups.values() if g.frozen is None}
    found = score().scores([groups[10], groups[14]], state)
    assert int(np.argmin(found[groups[10].name])) == 4
    assert int(np.argmin(found[groups[14].name])) == 9


def without_text() -> State:
    return decoder_state(make(), calibration=None)


def with_nan() -> State:
    state = decoder_state(make())
    state.subject.model.get_submodule("model.layers.0.mlp.up_proj").weight.data.fill_(float("nan"))  # type: ignore[operator, union-attr]
    return state


class Halved(nn.Module):
    """Reads its inner width through an operator that is no linear map of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.weight = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.first(x).relu(), self.weight * 0.5)


def unread() -> Any:
    model = Halved().eval()
    x = torch.randn(4, 5)
    state = module_state(model, x, losses=[lambda m: m(x).sum()])
    assert state.subject.coupling is not None
    return Wanda().scores([g for g in state.subject.coupling.groups.values() if g.size == 8], state)


def scored(score: Any, state: State) -> Any:
    return score.scores([group_of(state, "model.layers.0.mlp:width")], state)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: scored(Wanda(), without_text()), "wanda scores need calibration text"),
        (lambda: scored(Obs(), without_text()), "obs scores need calibration text"),
        (lambda: scored(Flap(), with_nan()), "the flap scores of model.layers.0.mlp:width are not finite"),
        (lambda: scored(Activation(), with_nan()), "the activation scores of .* are not finite"),
        (lambda: scored(Obs(metric="outputs"), with_nan()), "down_proj.weight: the second moments .* are not finite"),
        (lambda: scored(Obs(samples=1, length=4, damping=0.0), decoder_state(make())), "are singular; 4 tokens for 12"),
        (lambda: scored(Obs(), with_nan()), "the loss on batch 0 is nan"),
        (lambda: scored(Fisher(), without_text()), "fisher scores need calibration text"),
        (lambda: scored(Fisher(), with_nan()), "the loss on batch 0 is nan"),
        (lambda: scored(Fisher(length=1), decoder_state(make())), "length 1 leaves no token to predict"),
        (unread, "wanda cannot score .*: no linear map or convolution reads it"),
        (lambda: Wanda(samples=0).check(), "wanda: samples=0 is below 1"),
        (lambda: Flap(batch=0).check(), "flap: batch=0 is below 1"),
        (lambda: Obs(rounds=0).check(), "obs: rounds=0 is below 1"),
        (lambda: Obs(damping=-0.5).check(), "obs: damping=-0.5 is below 0"),
    ],
)
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        attempt()
    assert caught.value.hint


@pytest.mark.parametrize("kind", PASSES)
def test_scores_do_not_depend_on_how_windows_are_batched(kind: Any) -> None:
    """Tokens that a router picked are of several windows, and do not tell of which."""
    found = []
    for batch in (1, 2, 5):
        state = decoder_state(make("experts"))
        group = group_of(state, "model.layers.1.mlp.experts:width")
        step = kind(samples=5, length=8, batch=batch)
        found.append(step.scores([group], state)[group.name])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)
