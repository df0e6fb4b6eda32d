"""Contributions against a naive computation with full gradients, and what a bad request or a bad model is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.ir.errors import FxpruneError
from fxprune.passes.score import position_scores as parts
from fxprune.passes.score.gradients.taylor_terms import taylor as taylor_of
from fxprune.passes.score.units import Contributions, Wanted
from fxprune.passes.score.weight_powers import magnitude
from fxprune.runtime.streaming.block_runner import BlockRunner

from ...forks import Forks

VARIANTS = ("vector", "element1", "second", "element2")
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2}

FAMILIES: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama-gqa": lambda: transformers.LlamaConfig(**GATED, tie_word_embeddings=False),
    "llama-tied": lambda: transformers.LlamaConfig(**GATED, tie_word_embeddings=True, pad_token_id=3),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32),
    "falcon": lambda: transformers.FalconConfig(**SIZES, bias=True, new_decoder_architecture=True, num_kv_heads=2),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=24),
    "qwen3": lambda: transformers.Qwen3Config(**GATED, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**GATED, pad_token_id=0),
    "experts-batched": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    "experts-eager": lambda: transformers.MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    "gemma": lambda: transformers.GemmaConfig(**GATED, head_dim=4),
}


def taylor(model: Any, *request: Any) -> Any:
    """The contributions of a model that holds its weights."""
    return taylor_of(BlockRunner(model), *request)


def build(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    if family.startswith("experts"):
        model.set_experts_implementation("batched_mm" if family.endswith("batched") else "eager")
    with torch.no_grad():  # far from zero, or the second order would not be seen
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def draw(samples: int = 3, length: int = 7) -> Tensor:
    return torch.randint(48, (samples, length), generator=torch.Generator().manual_seed(1))


def all_dimensions(model: nn.Module) -> Wanted:
    return {name: frozenset(range(p.dim())) for name, p in model.named_parameters()}


def naive(model: nn.Module, tokens: Tensor, wanted: Wanted, variant: str) -> Contributions:
    """The formulas with all gradients in memory and a backward pass for every sample."""
    named = {name: p for name, p in model.named_parameters() if name in wanted}

    def gradients(batch: Tensor) -> dict[str, Tensor]:
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}

    whole = gradients(tokens)
    single = [gradients(tokens[j : j + 1]) for j in range(len(tokens))]
    contributions = {}
    for name, weight in named.items():
        squares = sum(g[name].double() ** 2 for g in single) / len(single)
        w, g = weight.detach().double(), whole[name].double()
        saliency = {"second": w * squares * w, "element2": w * g - 0.5 * w * squares * w}.get(variant, w * g)
        for dim in wanted[name]:
            others = [d for d in range(w.dim()) if d != dim]
            if variant == "vector":
                vector = (saliency.sum(dim=others) if others else saliency).abs()
            else:
                vector = saliency.abs().sum(dim=others) if others else saliency.abs()
            contributions[name, dim] = vector.numpy()
    return contributions


def assert_same(got: Contributions, expected: Contributions, relative: float) -> None:
    assert got.keys() == expected.keys()
    # Softmax does not feel the bias of keys: what its gradient shows is rounding, of the size of this.
    noise = 1e-14 * max(float(np.abs(vector).max()) for vector in expected.values())
    for key, vector in expected.items():
        assert got[key].dtype == np.float64
        np.testing.assert_allclose(
            got[key], vector, rtol=relative, atol=relative * np.abs(vector).max() + noise, err_msg=str(key)
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_naive_computation(family: str, variant: str) -> None:
    model = build(family)
    wanted = all_dimensions(model)
    expected = naive(model, draw(), wanted, variant)
    assert_same(taylor(model, draw(), wanted, variant), expected, 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_stays_close_to_float64(variant: str) -> None:
    wanted = all_dimensions(build("llama-tied"))
    expected = naive(build("llama-tied"), draw(), wanted, variant)
    assert_same(taylor(build("llama-tied", torch.float32), draw(), wanted, variant), expected, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_equals_naive_float32(variant: str) -> None:
    model = build("llama-gqa", torch.float32)
    # The final projections: no long way back on which float32 products of other shapes round differently.
    wanted = {"lm_head.weight": frozenset({0, 1}), "model.norm.weight": frozenset({0})}
    assert_same(taylor(model, draw(), wanted, variant), naive(model, draw(), wanted, variant), 1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_equals_naive_bfloat16(variant: str) -> None:
    """Gradients are rounded as the model rounds them; all that is made of them is float64.

    ``element2`` alone adds up the gradients of the samples, where the naive computation has that of the whole batch:
    both are rounded, each to half an epsilon.
    """
    model = build("llama-gqa", torch.bfloat16)
    wanted = {"model.layers.1.mlp.down_proj.weight": frozenset({0, 1})}
    relative = torch.finfo(torch.bfloat16).eps if variant == "element2" else 1e-12
    assert_same(taylor(model, draw(), wanted, variant), naive(model, draw(), wanted, variant), relative)


class Tiny(nn.Module):
    """A language model in one line, with a hidden step that treats the batch in some peculiar way."""

    def __init__(self, step: Callable[[Tiny, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(48, 6, dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
        self.step = step

    def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> Any:
        assert not use_cache
        # Samples meet their own neighbours in time, so that no two tokens are the same.
        hidden = F.embedding(input_ids, self.table).cumsum(dim=1).tanh()
        logits = F.linear(self.step(self, hidden), self.table)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, 48), labels[:, 1:].reshape(-1))
        return SimpleNamespace(loss=loss, logits=logits)


def sorted_rows(model: Tiny, x: Tensor) -> Tensor:
    """As experts do: tokens are gathered in an order of their own."""
    rows = x.reshape(-1, 6)
    order = rows[:, 0].argsort()
    return torch.empty_like(rows).index_copy(0, order, F.linear(rows[order], model.weight, model.bias)).view_as(x)


def time_first(model: Tiny, x: Tensor) -> Tensor:
    return F.linear(x.transpose(0, 1), model.weight, model.bias).transpose(0, 1)


def columns(model: Tiny, x: Tensor) -> Tensor:
    """``[6, N * L]``: with N and L of 3 and 2 the weight's rows could pass for samples."""
    return torch.mm(model.weight, x.reshape(-1, 6).T).T.reshape(x.shape) * model.bias


def overwritten(model: Tiny, x: Tensor) -> Tensor:
    x = x * 1.0
    y = x + model.bias
    x.mul_(0.5)
    return F.linear(y + x, model.weight)


def in_place(model: Tiny, x: Tensor) -> Tensor:
    return F.linear(x, model.weight).add_(model.bias)


def view_in_place(model: Tiny, x: Tensor) -> Tensor:
    y = F.linear(x, model.weight, model.bias)
    z = y * 2
    y += x
    return y + z


class Hidden(torch.autograd.Function):
    """A product that no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] @ w.T, (x.transpose(1, 2) @ grads[0]).sum(0)


def custom_function(model: Tiny, x: Tensor) -> Tensor:
    return Hidden.apply(x, model.weight) + F.linear(x, model.weight, model.bias)


def listed(model: Tiny, x: Tensor) -> Tensor:
    return torch.einsum("nli,oi->nlo", x, model.weight) + torch.stack([model.bias, model.bias]).sum(0)


def derived(model: Tiny, x: Tensor) -> Tensor:
    return (x @ (2 - model.weight.T)) * (1 + model.bias.exp())


def stopped(model: Tiny, x: Tensor) -> Tensor:
    """Where no gradient is to flow, none may be made up."""
    with torch.no_grad():
        offset = F.linear(x, model.weight)
    return F.linear(x, model.weight.detach() + model.weight, model.bias) * model.bias.detach() + offset


def several_outputs(model: Tiny, x: Tensor) -> Tensor:
    mean, largest = torch.max(x * model.bias, model.weight.sum()), torch.aminmax(model.bias).max
    return F.linear(mean, model.weight) * largest


def shape_only(model: Tiny, x: Tensor) -> Tensor:
    y = F.linear(x.type_as(model.weight), model.weight, model.bias)
    return y.expand_as(y + model.bias) + torch.zeros_like(model.weight).sum()


PECULIAR = (sorted_rows, time_first, columns, overwritten, in_place, view_in_place, custom_function, listed, derived)
PECULIAR += (stopped, several_outputs, shape_only)


@pytest.mark.parametrize("samples", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("step", PECULIAR, ids=lambda step: step.__name__)
def test_samples_are_never_confused(step: Callable[[Tiny, Tensor], Tensor], samples: int) -> None:
    model = Tiny(step)
    tokens = draw(samples, length=6)
    wanted = all_dimensions(model)
    assert_same(taylor(model, tokens, wanted, "element2"), naive(model, tokens, wanted, "element2"), 1e-6)


def test_a_loss_that_is_not_the_mean_of_its_samples_is_still_of_single_samples() -> None:
    """An auxiliary loss on the whole batch: the batch is not cut, each sample is run with its own."""

    class Auxiliary(Tiny):
        def forward(self, input_ids: Tensor, labels: Tensor, use_cache: bool) -> Any:
            output = super().forward(input_ids, labels, use_cache)
            output.loss = output.loss + self.table.square().mean()
            return output

    model = Auxiliary(derived)
    wanted = all_dimensions(model)
    assert_same(taylor(model, draw(), wanted, "element2"), naive(model, draw(), wanted, "element2"), 1e-6)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_magnitude_equals_its_formula(p: int) -> None:
    model = build("experts-batched")
    wanted = all_dimensions(model)
    expected = {}
    for name, weight in model.named_parameters():
        for dim in range(weight.dim()):
            flat = weight.detach().movedim(dim, 0).reshape(weight.shape[dim], -1)
            expected[name, dim] = (flat.abs() ** p).sum(1).numpy()
    assert_same(magnitude(model, wanted, p), expected, 1e-12)


def test_large_tensors_are_reduced_in_pieces() -> None:
    """More than one slab, along the first dimension and inside it."""
    layer = nn.Module()
    layer.register_parameter("flat", nn.Parameter(torch.rand(700, 513)))
    layer.register_parameter("deep", nn.Parameter(torch.rand(3, 90, 35, 2)))
    got = magnitude(layer, all_dimensions(layer), 1)
    assert got.keys() == {("flat", 0), ("flat", 1), ("deep", 0), ("deep", 1), ("deep", 2), ("deep", 3)}
    for name, weight in layer.named_parameters():
        assert len(list(parts.slabs_of(weight))) > 3
        for dim in range(weight.dim()):
            total = weight.detach().double().movedim(dim, 0).flatten(1).sum(1).numpy()
            np.testing.assert_allclose(got[name, dim], total, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "limit"), [((), 1), ((7,), 3), ((4, 5), 5), ((4, 5), 3), ((2, 3, 4), 5), ((0, 3), 2)]
)
def test_slabs_cover_every_element_once(shape: tuple[int, ...], limit: int) -> None:
    seen = torch.zeros(shape)
    for slab in parts.slabs(shape, limit):
        seen[slab] += 1
        assert seen[slab].numel() <= limit
    assert bool((seen == 1).all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_wanted_parameters_get_gradients(variant: str) -> None:
    model = build("llama-gqa")
    wanted = {
        "model.layers.1.mlp.up_proj.weight": frozenset({0}),
        "model.layers.1.mlp.down_proj.weight": frozenset({1}),
    }
    seen: list[set[str]] = []
    model.register_forward_pre_hook(
        lambda module, _args: seen.append({n for n, p in module.named_parameters() if p.requires_grad})
    )
    got = taylor(model, draw(), wanted, variant)
    assert seen
    assert all(names == set(wanted) for names in seen)
    assert {key: vector.shape for key, vector in got.items()} == {
        ("model.layers.1.mlp.up_proj.weight", 0): (24,),
        ("model.layers.1.mlp.down_proj.weight", 1): (24,),
    }


def test_a_parameter_the_loss_does_not_depend_on_scores_zero() -> None:
    model = build("llama-gqa")
    model.register_parameter("idle", nn.Parameter(torch.ones(5, dtype=torch.float64)))
    for variant in VARIANTS:
        got = taylor(model, draw(), {"idle": frozenset({0}), "lm_head.weight": frozenset({0})}, variant)
        assert got["idle", 0].tolist() == [0] * 5
        assert got["lm_head.weight", 0].all()


def state_of(model: nn.Module) -> list[tuple[Any, ...]]:
    flags = [
        (n, id(p), p.requires_grad, id(p.grad), p._version) for n, p in model.named_parameters(remove_duplicate=False)
    ]
    hooks = [(n, len(p._post_accumulate_grad_hooks or ())) for n, p in model.named_parameters()]
    return [*flags, *hooks, *((n, m.training, len(m._forward_hooks)) for n, m in model.named_modules())]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(variant: str, broken: bool) -> None:
    model = build("llama-tied")
    model.model.layers[0].train()
    model.model.norm.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    if broken:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    before, values = state_of(model), {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():  # as a caller may well have it
        if broken:
            with pytest.raises(FxpruneError):
                taylor(model, draw(), all_dimensions(model), variant)
        else:
            taylor(model, draw(), all_dimensions(model), variant)
    assert state_of(model) == before
    assert all(torch.equal(p.nan_to_num(), values[n].nan_to_num()) for n, p in model.named_parameters())


def test_memory_beyond_weights_and_activations_is_two_gradients(forks: Forks) -> None:
    """Two samples of three tokens: activations too small to hide a gradient."""
    script = Path(fxprune.__file__).parent / "benchmarks" / "scale" / "scoring_memory.py"
    small = ["--hidden=256", "--layers=2", "--vocab=8000", "--samples=2", "--length=3"]
    done = forks.run([sys.executable, str(script), *small])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("element2") == 2
