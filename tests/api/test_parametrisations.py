"""Weights that a parametrisation computes: units go from the original tensors, and what is computed is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize

import fxprune
from fxprune.api import Pruned

from ..equivalence import masked

Wrap = Callable[[nn.Module], nn.Module]
TOLERANCE = 1e-10
"""float64, relative: rounding."""


class Halved(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.tanh() / 2


def halved(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


def weight_norm(dim: int | None) -> Wrap:
    return lambda layer: parametrizations.weight_norm(layer, dim=dim)


WRAPS: dict[str, Wrap] = {
    "spectral_norm": parametrizations.spectral_norm,
    "the old spectral_norm": utils.spectral_norm,
    "weight_norm by rows": weight_norm(0),
    "weight_norm by columns": weight_norm(1),
    "weight_norm of all": weight_norm(None),
    "one's own": halved,
}


def spared(name: str) -> set[tuple[str, int]]:
    """Directions of units whose gain is zero: without a direction, their weight would be 0 / 0."""
    dims = {"weight_norm by rows": 0, "weight_norm by columns": 1}
    return {("2.parametrizations.weight.original1", dims[name])} if name in dims else set()


def linear(wrap: Wrap) -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Linear(4, 8), nn.ReLU(), wrap(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 3)
    return nn.Sequential(*layers), torch.randn(5, 4, dtype=torch.float64)


def convolutional(wrap: Wrap) -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), wrap(nn.Conv2d(8, 12, 3)), nn.ReLU(), nn.Conv2d(12, 3, 1)
    return nn.Sequential(*layers), torch.randn(2, 3, 7, 7, dtype=torch.float64)


def pruned(net: nn.Module, x: torch.Tensor) -> Pruned:
    return fxprune.prune_module(net.double().eval(), x[:2], "magnitude", ratio=0.5)


@pytest.mark.parametrize("make", [linear, convolutional])
@pytest.mark.parametrize("name", WRAPS)
def test_units_go_from_the_original_tensors(name: str, make: Callable[[Wrap], tuple[nn.Module, torch.Tensor]]) -> None:
    torch.manual_seed(0)
    net, x = make(WRAPS[name])
    small = pruned(net, x)
    with torch.no_grad():
        expected = masked(net, small.plan, spared(name))(x)
        torch.testing.assert_close(small.module(x), expected, rtol=TOLERANCE, atol=1e-12)
    layer = small.module[2]
    assert small.in_place
    assert [(change.before, change.after) for change in small.groups] == [(8, 4), (12, 6)]
    assert layer.weight.shape[:2] == (6, 4)
    inward, outward = ("in_channels", "out_channels") if make is convolutional else ("in_features", "out_features")
    assert (getattr(layer, inward), getattr(layer, outward)) == (4, 6)
    assert parametrize.is_parametrized(layer) == ("old" not in name)


def test_a_spectral_norm_is_that_of_the_smaller_matrix_in_training_too() -> None:
    """The power iteration sees the rows and columns that are left, as it would see zeros in place of the others."""
    torch.manual_seed(0)
    net, x = linear(parametrizations.spectral_norm)
    small = pruned(net, x)
    whole = masked(net, small.plan).train()
    small.module.train()
    for _ in range(100):
        torch.testing.assert_close(small.module(x), whole(x), rtol=TOLERANCE, atol=1e-12)
    norm = torch.linalg.matrix_norm(small.module[2].weight, 2)
    torch.testing.assert_close(norm.item(), 1.0, rtol=1e-3, atol=0.0)


def test_the_old_weight_norm_holds_a_tensor_that_torch_does_not_copy() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"):
        net, x = linear(utils.weight_norm)
    small = pruned(net, x)
    with torch.no_grad():
        expected = masked(net, small.plan, {("2.weight_v", 0)})(x)
        torch.testing.assert_close(small.module(x), expected, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley"])
def test_an_orthogonal_weight_loses_rows_of_its_base_alone(orthogonal_map: str) -> None:
    torch.manual_seed(0)
    net, x = linear(lambda layer: parametrizations.orthogonal(layer, orthogonal_map=orthogonal_map))
    small = pruned(net, x)
    assert {place for place in small.plan.slices if "parametrizations" in place[0]} == {
        ("2.parametrizations.weight.0.base", 0)
    }
    with torch.no_grad():
        torch.testing.assert_close(small.module(x), masked(net, small.plan)(x), rtol=TOLERANCE, atol=1e-12)


def test_a_weight_computed_of_all_its_rows_and_columns_is_refused_with_its_name() -> None:
    torch.manual_seed(0)
    net, x = convolutional(lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"))
    with pytest.raises(
        fxprune.RequestError, match=r"aten\.\w+ at 2\.parametrizations\.weight\.0 \S*parametrizations\.py"
    ):
        pruned(net, x)


class Recurrent(nn.Module):
    """A recurrent layer, one of whose weights is computed."""

    def __init__(self, wrap: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(16, 3)
        self.layer = wrap(nn.LSTM(12, 16, batch_first=True), "weight_hh_l0")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(self.first(x))[0])


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_a_weight_of_a_recurrent_layer_may_be_computed(wrap: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = Recurrent(wrap), torch.randn(3, 6, 5, dtype=torch.float64)
    small = pruned(net, x)
    assert small.module.layer.hidden_size == 8
    expected = masked(net, small.plan, {("layer.parametrizations.weight_hh_l0.original1", 0)})
    with torch.no_grad():
        torch.testing.assert_close(small.module(x), expected(x), rtol=TOLERANCE, atol=1e-12)


class Rounded(nn.Module):
    """A network in training for integers: rounded activations, and a weight with a step for each of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.register_buffer("step", torch.rand(12) / 100 + 0.01)
        self.register_buffer("zero", torch.zeros(12, dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fake_quantize_per_tensor_affine(self.first(x), 0.02, 0, -128, 127)
        weight = torch.fake_quantize_per_channel_affine(self.second.weight, self.step, self.zero, 0, -128, 127)
        return self.third(nn.functional.linear(x, weight, self.second.bias).relu())


def test_steps_of_rows_go_with_the_rows() -> None:
    torch.manual_seed(0)
    net, x = Rounded().eval(), torch.randn(5, 4)
    small = fxprune.prune_module(net, x[:2], "magnitude", ratio=0.5)
    assert small.in_place
    assert small.module.step.shape == (6,)
    with torch.no_grad():
        torch.testing.assert_close(small.module(x), masked(net, small.plan, {("step", 0)})(x))


def test_observers_that_are_switched_off_let_units_pass() -> None:
    torch.manual_seed(0)
    quantise = FusedMovingAvgObsFakeQuantize()
    net, x = nn.Sequential(nn.Linear(4, 8), quantise, nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 4)
    net(x)
    quantise.disable_observer()
    small = fxprune.prune_module(net.eval(), x[:2], "magnitude", ratio=0.5)
    with torch.no_grad():
        torch.testing.assert_close(small.module(x), masked(net, small.plan)(x))
