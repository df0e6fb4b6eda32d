"""Shrinking a module in place: what it computes, what it touches, what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.ir.errors import FxpruneError
from fxprune.ir.plan import Plan
from fxprune.ir.repairs import ConfigView, Repairs, repair
from fxprune.passes.shrink.dry_run import DryRun
from fxprune.passes.shrink.module import shrink_module
from fxprune.tests.cuts import (
    CUTS,
    Cut,
    example,
    gpt2,
    llama_gqa,
    llama_mha,
    llama_queries,
    llama_range,
    llama_residual,
    logits,
    opt,
    phi3,
)

EXACT = 1e-10
"""Two float64 programs that add the same numbers in another order."""


def masked_logits(cut: Cut) -> torch.Tensor:
    masked = Cut(copy.deepcopy(cut.model), cut.slices, cut.noted)
    return logits(masked.masked())


def close(model: nn.Module, reference: torch.Tensor) -> Callable[[], bool]:
    return lambda: bool((logits(model) - reference).abs().max() < EXACT)


@pytest.fixture(params=CUTS)
def cut(request: pytest.FixtureRequest) -> Cut:
    made = CUTS[request.param]()
    made.model.double()
    return made


def test_removing_equals_zeroing(cut: Cut) -> None:
    reference = masked_logits(cut)
    before = {name: tensor.shape for name, tensor in cut.model.named_parameters()}
    extents = cut.extents()
    shrink_module(cut.model, cut.plan(), extents, example(), accept=close(cut.model, reference))
    assert (logits(cut.model) - reference).abs().max() < EXACT
    for name, tensor in cut.model.named_parameters():
        shape = list(before[name])
        for dim in range(len(shape)):
            shape[dim] = len(cut.slices.get((name, dim), range(shape[dim])))
        assert list(tensor.shape) == shape


@pytest.mark.parametrize("name", CUTS)
def test_eager_attention_runs_as_well(name: str) -> None:
    cut, whole = CUTS[name](), CUTS[name]()
    cut.model.double()
    reference = masked_logits(cut)
    shrink_module(cut.model, cut.plan(), cut.extents(), example(), accept=close(cut.model, reference))
    cut.model.set_attn_implementation("eager")
    whole.model.double().set_attn_implementation("eager")
    assert (logits(cut.model) - masked_logits(whole)).abs().max() < EXACT


def test_decoding_with_a_cache_equals_decoding_without(cut: Cut) -> None:
    reference = masked_logits(cut)
    shrink_module(cut.model, cut.plan(), cut.extents(), example(), accept=close(cut.model, reference))
    ids = example()["input_ids"]
    with torch.no_grad():
        cache = cut.model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        last = cut.model(input_ids=ids[:, -1:], past_key_values=cache).logits
    assert (last[:, 0] - reference[:, -1]).abs().max() < EXACT


def test_the_residual_width_equals_an_independently_built_model() -> None:
    cut = llama_residual()
    source = {name: tensor.detach().clone() for name, tensor in cut.model.named_parameters()}
    config = copy.deepcopy(cut.model.config)
    shrink_module(cut.model, cut.plan(), cut.extents(), example())
    config.hidden_size, config.head_dim = 48, 16
    smaller = type(cut.model)(config).eval()
    for (name, dim), kept in cut.slices.items():
        source[name] = source[name].index_select(dim, torch.tensor(kept))
    smaller.load_state_dict(source)
    assert torch.equal(logits(cut.model), logits(smaller))


def test_meta_and_real_models_are_repaired_alike() -> None:
    real, meta = gpt2(), gpt2()
    meta.model.to("meta").tie_weights()
    arguments = (real.plan(), real.extents(), example())
    assert shrink_module(real.model, *arguments) == shrink_module(meta.model, *arguments)
    assert all(parameter.is_meta for parameter in meta.model.parameters())
    shapes = [{name: p.shape for name, p in cut.model.named_parameters()} for cut in (real, meta)]
    assert shapes[0] == shapes[1]


def test_ties_dtype_and_gradient_flags_are_kept() -> None:
    cut = llama_residual()
    cut.model.lm_head.weight = cut.model.model.embed_tokens.weight
    del cut.slices["lm_head.weight", 1]
    cut.model.to(torch.bfloat16)
    cut.model.model.embed_tokens.weight.requires_grad_(False)
    shrink_module(cut.model, cut.plan(), cut.extents(), example())
    assert cut.model.lm_head.weight is cut.model.model.embed_tokens.weight
    assert cut.model.lm_head.weight.shape == (40, 48)
    assert not cut.model.lm_head.weight.requires_grad
    assert {parameter.dtype for parameter in cut.model.parameters()} == {torch.bfloat16}


def test_modules_without_a_change_and_configurations_are_not_touched() -> None:
    cut = llama_range()
    before = {path: dict(vars(module)) for path, module in cut.model.named_modules() if "layers.1" not in path}
    config = cut.model.config.to_dict()
    repairs = shrink_module(cut.model, cut.plan(), cut.extents(), example())
    assert cut.model.config.to_dict() == config
    assert {path.split(".self_attn")[0].split(".mlp")[0] for path in repairs.attributes} == {"model.layers.1"}
    for path, module in cut.model.named_modules():
        if path in before:
            numbers = {name: value for name, value in vars(module).items() if isinstance(value, int)}
            assert numbers == {name: value for name, value in before[path].items() if isinstance(value, int)}


@pytest.mark.parametrize(
    ("make", "path", "expected"),
    [
        (llama_mha, "model.layers.1.mlp.down_proj", {"in_features": (96, 72)}),
        (llama_mha, "model.layers.1.self_attn.o_proj", {"in_features": (64, 48)}),
        (llama_queries, "model.layers.0.self_attn", {"num_key_value_groups": (2, 1)}),
        (gpt2, "transformer.h.0.attn", {"num_heads": (4, 3), "split_size": (64, 48)}),
        (gpt2, "transformer.h.0.attn.c_proj", {"nx": (64, 48)}),
        (
            phi3,
            "model.layers.3.self_attn",
            {"config.num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)},
        ),
        (llama_residual, "model.layers.0.self_attn.q_proj", {"in_features": (64, 48)}),
        (llama_residual, "model.layers.0.self_attn.o_proj", {"out_features": (64, 48)}),
        (llama_residual, "model.embed_tokens", {"embedding_dim": (64, 48)}),
    ],
)
def test_attributes(make: Callable[[], Cut], path: str, expected: dict[str, Any]) -> None:
    cut = make()
    assert shrink_module(cut.model, cut.plan(), cut.extents(), example()).attributes[path] == expected


def test_parameters_are_enough_where_nothing_is_known_of_the_extents() -> None:
    cut = llama_mha()
    repairs = shrink_module(cut.model, cut.plan(), {}, example())
    assert repairs.attributes["model.layers.1.self_attn.o_proj"] == {"in_features": (64, 48)}


def test_an_index_that_equals_a_width_is_not_a_width() -> None:
    """Layers 4 and 8 of a model with 8 heads and 4 kv heads; its 8 layers are counted in the configuration."""
    cut = llama_gqa()
    shrink_module(cut.model, cut.plan(), cut.extents(), example())
    assert [layer.self_attn.layer_idx for layer in cut.model.model.layers] == list(range(8))
    assert {layer.self_attn.head_dim for layer in cut.model.model.layers} == {8}


@pytest.mark.parametrize("odd", [lambda: False, lambda: 1 / 0], ids=["another function", "an error"])
def test_a_model_that_no_repair_makes_right_is_as_it_was(odd: Callable[[], bool]) -> None:
    cut = llama_residual()
    cut.model.lm_head.weight = cut.model.model.embed_tokens.weight
    del cut.slices["lm_head.weight", 1]
    before, expected = {name: p.clone() for name, p in cut.model.named_parameters()}, logits(cut.model)
    with pytest.raises(FxpruneError, match=r"the shrunken model (runs but|does not run: ZeroDivisionError)"):
        shrink_module(cut.model, cut.plan(), cut.extents(), example(), accept=odd)
    assert cut.model.lm_head.weight is cut.model.model.embed_tokens.weight
    assert all(torch.equal(parameter, before[name]) for name, parameter in cut.model.named_parameters())
    assert torch.equal(logits(cut.model), expected)


def test_only_numbers_tell_heads_from_head_size() -> None:
    """8 heads of 8: reading 6 heads of 8 as 8 heads of 6 runs as well, and ``accept`` is asked."""
    cut = opt()
    asked = []

    def refuse_the_first() -> bool:
        attention = cut.model.model.decoder.layers[0].self_attn
        asked.append((attention.num_heads, attention.head_dim))
        return len(asked) == 2

    shrink_module(cut.model, cut.plan(), cut.extents(), example(), accept=refuse_the_first)
    assert sorted(asked) == [(6, 8), (8, 6)]


class Normed(nn.Module):
    """A normalisation over the width that is cut, and a buffer of that width."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6)
        self.register_buffer("shift", torch.arange(8.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.down(self.norm(self.up(x)) + self.shift),)


def normed(**slices: list[int]) -> tuple[Normed, Plan, dict[str, frozenset[tuple[int, int]]], dict[str, torch.Tensor]]:
    model = Normed()
    names = {"up.weight": 0, "up.bias": 0, "norm.weight": 0, "norm.bias": 0, "down.weight": 1, "shift": 0}
    kept = {(name, dim): np.array([0, 2, 5], dtype=np.int64) for name, dim in names.items()}
    for key, indices in slices.items():
        name, dim = key.rsplit("_", 1)
        kept[name.replace("__", "."), int(dim)] = np.array(indices, dtype=np.int64)
    extents = {path: frozenset({(8, 3), (6, 6)}) for path in ("", "up", "down")} | {"norm": frozenset({(8, 3)})}
    return model, Plan(slices=kept), extents, {"x": torch.randn(2, 5, 6)}


def test_tuples_and_buffers() -> None:
    model, plan, extents, inputs = normed()
    repairs = shrink_module(model, plan, extents, inputs)
    assert model.shift.tolist() == [0.0, 2.0, 5.0]
    assert not isinstance(model.shift, nn.Parameter)
    assert repairs.attributes["norm"] == {"normalized_shape": ((8,), (3,))}
    assert model.norm.normalized_shape == (3,)
    assert model(**inputs)[0].shape == (2, 5, 6)


class Stubborn(Normed):
    """Its width stands in its code."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.down(self.up(x).view(2, 5, 8)),)


def test_a_model_that_cannot_be_repaired_is_named_and_untouched() -> None:
    _, plan, extents, inputs = normed()
    model = Stubborn()
    with pytest.raises(FxpruneError, match=r"does not run: its root module: RuntimeError: .*shape") as caught:
        shrink_module(model, plan, extents, inputs)
    assert "fixed in the model's code" in caught.value.hint
    assert model.up.weight.shape == (8, 6)
    assert model.up.out_features == 8


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ({"side__weight_0": [0]}, r"slices 'side.weight', which the model does not have"),
        ({"up__weight_2": [0]}, r"slices dimension 2 of 'up.weight', whose shape is \(8, 6\)"),
        ({"up__weight_0": [0, 8]}, r"dimension 0 of 'up.weight' do not ascend within 0 to 7"),
        ({"up__weight_0": [2, 2]}, r"dimension 0 of 'up.weight' do not ascend"),
        ({"up__weight_0": [-1, 2]}, r"dimension 0 of 'up.weight' do not ascend"),
        ({"up__weight_0": []}, r"dimension 0 of 'up.weight' do not ascend"),
    ],
)
def test_a_plan_for_another_model(slices: dict[str, list[int]], message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        shrink_module(*normed(**slices))
    assert caught.value.hint == "the plan was made for another model"


def test_an_example_that_the_model_refuses() -> None:
    model, plan, extents, _ = normed()
    with pytest.raises(FxpruneError, match=r"does not run on the example input: up: RuntimeError"):
        shrink_module(model, plan, extents, {"x": torch.randn(2, 5)})


def test_repairs_that_compute_something_else() -> None:
    with pytest.raises(FxpruneError, match=r"computes something else than its graph \(1 ways"):
        shrink_module(*normed(), accept=lambda: False)


class Peeking(Normed):
    """A forward that looks at a value, which the meta device cannot give it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return super().forward(x if x.max() > -1 else -x)


def test_a_forward_that_looks_at_values_is_tried_on_zeros_in_the_dry_run() -> None:
    _, plan, extents, inputs = normed()
    model = Peeking()
    assert DryRun(model, inputs).mode.device == "cpu"
    shrink_module(model, plan, extents, inputs)
    assert model(**inputs)[0].shape == (2, 5, 6)


def test_repairs_as_data() -> None:
    first = Repairs({"a": {"n": (8, 6), "shape": ((8,), (6,))}})
    later = Repairs({"a": {"n": (6, 4)}, "b": {"config.m": (2, 1)}})
    both = first.then(later)
    assert both.attributes == {"a": {"n": (8, 4), "shape": ((8,), (6,))}, "b": {"config.m": (2, 1)}}
    assert Repairs.from_json(both.to_json()) == both
    assert both.to_json()["a"]["shape"] == [[8], [6]]


def test_a_config_view_is_live_and_can_be_copied() -> None:
    shared = SimpleNamespace(heads=8, attention="sdpa")
    module = SimpleNamespace(config=shared)
    repair(module, "config.heads", 6)
    shared.attention = "eager"
    assert (module.config.heads, module.config.attention, shared.heads) == (6, "eager", 8)
    assert isinstance(copy.deepcopy(module).config, ConfigView)
    assert copy.deepcopy(module).config.heads == 6
    with pytest.raises(AttributeError):
        _ = module.config.absent
