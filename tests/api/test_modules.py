"""Any module: what is coupled, what removing means, what comes out, what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
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
from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.runtime.tolerances import relative_difference, same_function
from fxprune.tracer.export import Traced
from fxprune.tracer.module import bind, trace_module

from ..equivalence import TOLERANCE, difference, masked, random_units, tensors_of, zeroed
from ..nets import NETS, HardCoded, build, images

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
    gradients = {name: parameter.grad for name, parameter in result.module.named_parameters()}
    assert gradients
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    result.module.zero_grad()
    result.module.eval()


def test_a_rewritten_graph_trains_too() -> None:
    _, result = pruned("hard-coded width")
    result.module(images(4).double()).sum().backward()
    gradients = {name: parameter.grad for name, parameter in result.module.named_parameters()}
    assert gradients
    assert [name for name, gradient in gradients.items() if gradient is None] == []
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


def test_each_pass_that_says_nothing_about_channels_prunes_them() -> None:
    """What one pass says is for itself, what the call says is for all, and two answers are refused."""

    def told(passes: str, channels: bool | None = None) -> str:
        return prune_module(build("depthwise"), images(), passes, ratio=0.25, channels=channels).options

    two = told("magnitude{channels=false},random")
    assert [part.partition("channels=")[2].partition(",")[0] for part in two.split("},")] == ["false", "true"]
    assert "channels=true" in told("magnitude")
    assert "channels=false" in told("magnitude", channels=False)
    with pytest.raises(RequestError, match="two values for one option: channels=false in the pipeline, channels=true"):
        told("magnitude{channels=false}", channels=True)


def test_the_result_as_json_holds_times_and_its_record_holds_none() -> None:
    result = prune_module(build("plain"), images(), "magnitude", ratio=0.5)
    data, record = json.loads(json.dumps(result.to_json())), result.to_record()
    assert set(data) - set(record) == {"steps"}
    assert [step["name"] for step in data["steps"]] == [step.name for step in result.steps]
    assert record["pipeline"] == result.options != result.pipeline


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


def test_it_is_a_public_call() -> None:
    assert fxprune.prune_module is prune_module


def test_a_plain_module_needs_no_transformers() -> None:
    code = (
        "import sys, torch, fxprune\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "assert fxprune.prune_module(net, torch.randn(2, 4), 'magnitude{ratio=0.5,channels=true}').in_place\n"
        "print([name for name in ('transformers', 'accelerate', 'peft', 'datasets') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


class Attends(nn.Module):
    """Self-attention between two layers; torch has a fast path for it that only runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(self.attention(y, y, y, need_weights=False)[0])


def encodes(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, **options)
    return nn.Sequential(nn.Linear(6, 24), layer, nn.Linear(24, 3))


@pytest.mark.parametrize("make", [Attends, encodes, lambda: encodes(norm_first=True, activation="gelu")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fast_path_of_torch_is_no_randomness(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = make().to(dtype).eval()
    pruned = fxprune.prune_module(dense, torch.randn(2, 5, 6, dtype=dtype), "magnitude{channels=false}", ratio=0.5)
    fresh = torch.randn(4, 5, 6, dtype=dtype)
    assert any(change.kind == "heads" and change.after == 2 for change in pruned.groups)
    with torch.no_grad():
        got, expected = pruned.module(fresh), masked(dense, pruned.plan)(fresh)
    assert relative_difference(got, expected) <= same_function(dtype)


class PaddedBatch(nn.Module):
    """A mask of padded positions, where the fast path of torch leaves zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 40, batch_first=True), 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.last(self.encoder(self.first(x), src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("channels", [False, True])
def test_padded_positions_are_pruned_as_the_layers_compute_them(channels: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = PaddedBatch().double().eval()
    x, padding = torch.randn(2, 5, 6).double(), torch.arange(5) >= torch.tensor([[3], [4]])
    pruned = fxprune.prune_module(dense, (x, padding), "magnitude", ratio=0.5, channels=channels)
    assert torch.backends.mha.get_fastpath_enabled()
    assert pruned.in_place is channels  # otherwise heads go alone, and torch's layer takes their width for the whole
    pruned.save(tmp_path / "out")
    if not channels:  # norms cross these
        with torch.no_grad():
            got, expected = pruned.module(x, padding), masked(dense, pruned.plan)(x, padding)
        read = ~padding[:, : expected.shape[1]]
        assert relative_difference(got[:, : expected.shape[1]][read], expected[read]) <= TOLERANCE


class Changing(nn.Module):
    """Every second call, or every call, gives another output, by less than two programs for one function may differ."""

    def __init__(self, alternates: bool, by: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.alternates, self.by, self.calls = alternates, by, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.last(self.first(x)) * (1 + self.by * (self.calls % 2 if self.alternates else self.calls))


@pytest.mark.parametrize(("alternates", "by"), [(True, 0.1), (False, 0.1), (False, 1e-5)])
def test_a_module_that_changes_is_refused_however_little(alternates: bool, by: float) -> None:
    with pytest.raises(FxpruneError, match="different outputs for the same inputs"):
        fxprune.prune_module(Changing(alternates, by), torch.randn(2, 6), "magnitude", ratio=0.5)
