"""Any module: what is coupled, what removing means, what comes out, what is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.api.modules import Pruned, prune_module
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.contributions import position_sums
from fxprune.passes.couple import Coupling, couple
from fxprune.passes.losses import taylor_of_losses
from fxprune.passes.shrink import make_plan, rewrite
from fxprune.tracer.export import Traced
from fxprune.tracer.module import bind, is_target, parse_example, resolve_module, trace_module

from .equivalence import TOLERANCE, difference, random_units, tensors_of, zeroed
from .nets import NETS, HardCoded, build, images

REWRITTEN = {"hard-coded width": "[-1, 224]", "padded shortcut": "layer2.0"}
"""Nets whose own forward does not hold at every smaller width, and what the reason names: a width in the code, and an
attribute that is the difference of two widths."""
NORMALISED = {"grouped", "channels last"}
"""Nets with a norm over channels, where removing is not zeroing."""


@cache
def subject(name: str) -> tuple[nn.Module, Traced, Coupling]:
    net = build(name)
    traced = trace_module(net, bind(net, images()), batch=True)
    return net, traced, couple(traced.graph)


@pytest.mark.parametrize("name", NETS)
def test_every_group_alone_equals_zeroing(name: str) -> None:
    """With the batch as small as the text of the graph allows, since it is traced at a large one."""
    net = build(name)
    traced = trace_module(net, bind(net, images(7)), batch=False)
    coupling = couple(traced.graph)
    generator = np.random.default_rng(0)
    checked = 0
    for group in coupling.prunable:
        if group.size > 1 and not group.normalised:
            assert difference(traced, coupling, net, {group.name: random_units(group, generator)}) <= TOLERANCE
            checked += 1
    assert checked


@pytest.mark.parametrize("name", NETS)
def test_only_ends_and_spatial_positions_are_frozen(name: str) -> None:
    _, _, coupling = subject(name)
    assert not coupling.unknown
    known = ("input of the model", "output of the model", "spatial positions", "the number of groups", "the groups of")
    frozen = [group.frozen for group in coupling.groups.values() if group.frozen is not None]
    assert [reason for reason in frozen if not reason.startswith(known)] == []


@cache
def pruned(name: str) -> tuple[nn.Module, Pruned]:
    net = build(name).double()
    return net, prune_module(net, images().double(), "random", ratio=0.4, seed=1)


@pytest.mark.parametrize("name", NETS)
def test_a_module_is_repaired_in_place_where_its_forward_holds(name: str) -> None:
    net, result = pruned(name)
    assert result.in_place is (name not in REWRITTEN)
    assert REWRITTEN.get(name, "") in result.rebuilt_because
    assert bool(result.rebuilt_because) is not result.in_place
    assert isinstance(result.module, NETS[name] if result.in_place else torch.fx.GraphModule)
    assert result.parameters[1] < result.parameters[0]
    assert result.macs[1] < result.macs[0]
    assert not result.fixed_batch
    assert list(result.module.state_dict()) or net
    assert set(dict(result.module.named_parameters())) == set(dict(net.named_parameters()))


@pytest.mark.parametrize("name", [name for name in NETS if name not in NORMALISED])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_smaller_module_equals_the_original_with_zeros(name: str, batch: int) -> None:
    net, result = pruned(name)
    masked = copy.deepcopy(net)
    masked.load_state_dict(zeroed(result.plan, tensors_of(net)), strict=False)
    x = images(batch).double()
    with torch.no_grad():
        expected, got = masked(x), result.module(x)
    assert float((expected - got).abs().max() / expected.abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(NORMALISED))
def test_under_a_norm_the_smaller_module_equals_its_graph(name: str) -> None:
    _, result = pruned(name)
    assert result.worst_difference <= TOLERANCE


def test_the_original_stays_as_it_is() -> None:
    net = build("plain").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    result = prune_module(net, images(), "magnitude", ratio=0.5)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert net.training
    assert result.module.training
    assert net.features[0][0].out_channels == 10
    assert result.module.features[0][0].out_channels == 5


def test_running_statistics_are_sliced_and_the_rest_trains() -> None:
    net, result = pruned("plain")
    kept = result.plan.slices["features.0.1.running_var", 0]
    assert torch.equal(result.module.features[0][1].running_var, net.features[0][1].running_var[kept])
    result.module.train()(images(4).double()).sum().backward()
    assert all(parameter.grad is not None for parameter in result.module.parameters())
    result.module.zero_grad()
    result.module.eval()


def test_a_rewritten_graph_trains_too() -> None:
    _, result = pruned("hard-coded width")
    result.module(images(4).double()).sum().backward()
    assert all(parameter.grad is not None for parameter in result.module.parameters())
    result.module.zero_grad()


def test_ratio_zero_changes_nothing() -> None:
    net = build("depthwise")
    result = prune_module(net, images(), "magnitude", ratio=0)
    with torch.no_grad():
        assert torch.equal(result.module(images(3)), net(images(3)))


def test_channels_can_be_left_alone() -> None:
    result = prune_module(build("depthwise"), images(), "magnitude{channels=false}", ratio=0.5)
    assert {change.name for change in result.groups} == {
        "blocks.0:width", "blocks.0:width.1", "blocks.1:width", "blocks.1:width.1",
    }  # fmt: skip


def test_passes_follow_one_another_on_a_rewritten_graph() -> None:
    net = build("hard-coded width").double()
    result = prune_module(net, images().double(), ["random{ratio=0.3,seed=0}", "magnitude{ratio=0.3}"])
    masked = copy.deepcopy(net)
    masked.load_state_dict(zeroed(result.plan, tensors_of(net)), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(result.module(images(3).double()), masked(images(3).double()))
    assert result.module.get_parameter("classifier.0.weight").shape[0] == 10  # 18, 13, 10


class Padded(nn.Module):
    """Padding with a number other than zero, of channels that no shortcut adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.pad(self.first(x), (0, 0, 0, 0, 2, 4), value=0.5)).mean((2, 3))


def test_padding_goes_unit_by_unit() -> None:
    net = Padded().eval()
    traced = trace_module(net, bind(net, images(7)), batch=False)
    coupling = couple(traced.graph)
    sizes = {group.size: group.name for group in coupling.prunable if group.size in (2, 4, 8)}
    keep = {sizes[2]: np.array([1]), sizes[4]: np.array([0, 2]), sizes[8]: np.array([1, 2, 5])}
    assert difference(traced, coupling, net, keep) <= TOLERANCE
    (pad,) = (op for op in rewrite(coupling, make_plan(coupling, keep)).ops if op.packet == "aten.pad")
    assert pad.args[1] == (0, 0, 0, 0, 1, 2)


class Several(nn.Module):
    """Several inputs, one of them a keyword, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 12), nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, a: Tensor, b: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        hidden = torch.tanh(self.left(a) + self.right(b) * scale)
        return {"out": self.out(hidden), "sides": [hidden.sum(1), None]}


class SeveralHardCoded(Several):
    def forward(self, a: Tensor, b: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        hidden = torch.tanh(self.left(a) + self.right(b) * scale).view(-1, 12)
        return {"out": self.out(hidden), "sides": [hidden.sum(1), None]}


@pytest.mark.parametrize("kind", [Several, SeveralHardCoded])
def test_several_inputs_and_outputs(kind: type[nn.Module]) -> None:
    net = kind().eval()
    a, b = torch.randn(3, 6), torch.randn(3, 4)
    result = prune_module(net, {"a": a, "b": b, "scale": 2.0}, "random", ratio=0.5, seed=0)
    assert result.in_place is (kind is Several)
    masked = copy.deepcopy(net)
    masked.load_state_dict(zeroed(result.plan, tensors_of(net)))
    with torch.no_grad():
        got, expected = result.module(a[:1], b[:1], scale=2.0), masked(a[:1], b[:1], scale=2.0)
    torch.testing.assert_close(got["out"], expected["out"])
    assert got["sides"][1] is None
    assert got["sides"][0].shape == (1,)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x.view(2, 6))))


FIXED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "written in the code": (FixedBatch, torch.randn(2, 6), "does not run with other numbers of samples"),
    "one sample": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 2)), torch.randn(1, 6), "a single sample"),
    "no batch": (
        Several,
        {"a": torch.randn(2, 6), "b": torch.randn(1, 4)},
        "the first dimensions of the inputs differ",
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_batch_that_is_fixed_is_said_to_be(name: str) -> None:
    make, inputs, reason = FIXED[name]
    result = prune_module(make().eval(), inputs, "random", ratio=0.5, seed=0)
    assert reason in result.fixed_batch


def test_samples_times_something_stay_free() -> None:
    """A batch that is folded into another dimension and out of it again."""

    class Folded(HardCoded):
        def forward(self, x: Tensor) -> Tensor:
            b, _, h, w = x.shape
            x = self.features(x.view(b * 4, 3, h, w // 4).view(b, 4, 3, h, w // 4).transpose(1, 3).reshape(b, 3, h, w))
            return self.classifier(x.view(-1, 224) + torch.ones(b, 1))

    net = Folded().eval()
    result = prune_module(net, torch.randn(2, 3, 16, 16), "random", ratio=0.3, seed=0)
    assert not result.in_place
    assert not result.fixed_batch
    assert result.module(torch.randn(5, 3, 16, 16)).shape == (5, 5)


def quadratic(net: nn.Module, batch: Tensor) -> Tensor:
    return net(batch).square().mean()


@pytest.mark.parametrize("variant", ["vector", "element1", "second", "element2"])
def test_scores_of_losses_follow_the_papers_formulas(variant: str) -> None:
    net = build("plain").double()
    batches = [images(2).double(), images(3).double()]
    wanted = {"features.0.0.weight": frozenset({0, 1}), "classifier.0.bias": frozenset({0})}
    found = taylor_of_losses(net, [lambda m, b=b: quadratic(m, b) for b in batches], wanted, variant)
    gradients = []
    for batch in batches:
        net.zero_grad()
        quadratic(net, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name, dims in wanted.items():
        w = net.get_parameter(name).detach()
        g = (gradients[0][name] + gradients[1][name]) / 2
        g2 = (gradients[0][name] ** 2 + gradients[1][name] ** 2) / 2
        saliency = {
            "vector": w * g, "element1": (w * g).abs(), "second": (w * g2 * w).abs(),
            "element2": (w * g - 0.5 * w * g2 * w).abs(),
        }[variant]  # fmt: skip
        for dim, total in position_sums(w, dims, lambda slab, s=saliency: s[slab]).items():
            np.testing.assert_allclose(found[name, dim], total.abs().numpy(), rtol=1e-9, atol=1e-15)


def test_taylor_keeps_what_the_loss_needs() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net[2].weight[:, [1, 4]] = 0
    result = prune_module(net, torch.randn(4, 6), "taylor", ratio=0.25, loss=quadratic, data=[torch.randn(4, 6)])
    assert result.plan.slices["0.weight", 0].tolist() == [0, 2, 3, 5, 6, 7]


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) if x.sum() > 0 else x


class Starred(nn.Module):
    def forward(self, *x: Tensor) -> Tensor:
        return x[0]


class Silent(nn.Module):
    def forward(self, x: Tensor) -> int:
        return x.dim()


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


X = torch.ones(2, 6)
REFUSED: list[tuple[Callable[[], Any], type[FxpruneError], str]] = [
    (lambda: prune_module(linear(), (X, X), "random"), RequestError, "do not fit Sequential.forward"),
    (lambda: prune_module(linear(), (), "random"), RequestError, "do not fit Sequential.forward"),
    (lambda: prune_module(linear(), 3 * (2,), "random"), RequestError, "do not fit Sequential.forward"),
    (lambda: prune_module(linear(), (2,), "random"), RequestError, "hold no tensor"),
    (lambda: prune_module(linear(), torch.ones(2, 5), "random"), FxpruneError, "does not run on the example inputs"),
    (lambda: prune_module(Starred(), X, "random"), RequestError, "takes any number of arguments (*x)"),
    (lambda: prune_module(Noisy(), X, "random"), FxpruneError, "returns something else every time it runs"),
    (lambda: prune_module(Silent(), X, "random"), FxpruneError, "returns no tensor"),
    (
        lambda: prune_module(Branching(), X, "random"),
        FxpruneError,
        "cannot trace Branching, at its root module (tests/",
    ),
    (lambda: prune_module(linear(), X, "taylor"), RequestError, "taylor scores need a loss"),
    (lambda: prune_module(linear(), X, "lora"), RequestError, "pass 'lora' works on language models"),
    (lambda: prune_module(linear(), X, "random", data=[X]), RequestError, "data without a loss"),
    (lambda: prune_module(linear(), X, "taylor", loss=quadratic, data=[]), RequestError, "data holds no batch"),
    (lambda: prune_module(linear(), X, "taylor", loss=lambda m: m(X)), RequestError, "no scalar tensor but of shape"),
    (lambda: prune_module(linear(), X, "taylor", loss=lambda _: 1.0), RequestError, "no scalar tensor but float"),
    (
        lambda: prune_module(linear(), X, "taylor", loss=lambda m: m(X).sum() * float("nan")),
        FxpruneError,
        "loss 0 is nan",
    ),
    (
        lambda: prune_module(linear(), X, "taylor", loss=lambda m: m(X).sum().detach()),
        FxpruneError,
        "loss 0 depends on no parameter",
    ),
    (
        lambda: prune_module(linear(), X, "taylor", loss=lambda _: torch.ones((), requires_grad=True) * 2),
        FxpruneError,
        "the loss depends on none of the 3 parameters",
    ),
    (
        lambda: prune_module(linear(), X, "taylor", loss=lambda m: (m(X) * 0).sum().abs().sqrt()),
        FxpruneError,
        "is not finite",
    ),
    (lambda: taylor_of_losses(linear(), [], {}, "third"), RequestError, "unknown Taylor variant 'third'"),
    (lambda: prune_module(nn.Linear(6, 2), X, "random"), RequestError, "the request removes nothing"),
    (lambda: resolve_module("no colon"), RequestError, "'no colon' names no attribute of a module"),
    (lambda: resolve_module("fxprune_absent:x"), RequestError, "'fxprune_absent' cannot be imported"),
    (lambda: resolve_module("math:x"), RequestError, "'math' has no 'x'"),
    (lambda: resolve_module("math:sqrt"), RequestError, "math:sqrt() fails: TypeError"),
    (lambda: resolve_module("math:pi"), RequestError, "math:pi is no torch.nn.Module but float"),
    (lambda: parse_example("float32(2,3)"), RequestError, "cannot be read from 'float32(2,3)' on"),
    (lambda: parse_example(""), RequestError, "cannot be read from '' on"),
    (lambda: parse_example("float32[2],x"), RequestError, "cannot be read from 'x' on"),
    (lambda: parse_example("float33[2]"), RequestError, "'float33' is no data type"),
    (lambda: parse_example("a=float32[2],int64[3]"), RequestError, "names some inputs and not others"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[2])
def test_what_is_refused(row: tuple[Callable[[], Any], type[FxpruneError], str]) -> None:
    call, kind, message = row
    with pytest.raises(kind) as caught:
        call()
    assert message in caught.value.message
    assert caught.value.hint


def test_modules_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\nheld = make()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(resolve_module("made_here:make"), nn.Linear)
    assert isinstance(resolve_module("made_here:held"), nn.Linear)
    assert is_target("made_here:make")
    assert not is_target("made_here")
    assert not is_target("/models/a:b")


def test_examples_are_read_from_text() -> None:
    (x,) = parse_example("float32[2,3,4]")
    assert (x.dtype, x.shape) == (torch.float32, (2, 3, 4))
    named = parse_example("ids=int64[2, 5], mask = bool[2,5],s=float64[]")
    assert isinstance(named, dict)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in named.items()} == {
        "ids": (torch.int64, (2, 5)), "mask": (torch.bool, (2, 5)), "s": (torch.float64, ()),
    }  # fmt: skip
    assert named["mask"].all()
    assert torch.equal(x, parse_example("float32[2,3,4]")[0])


def test_it_is_a_public_call() -> None:
    assert fxprune.prune_module is prune_module
