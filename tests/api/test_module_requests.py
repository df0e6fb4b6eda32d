"""What is asked of any module: modules by name, example inputs as text, and every request that is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.api.modules.prune import prune_module
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.score.gradients.taylor_of_losses import taylor_of_losses
from fxprune.tracer.module import parse_example, resolve_module
from fxprune.tracer.named_objects import is_target

from ..nets import quadratic


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


class TwoFaced(nn.Module):
    """Computes something else where it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(self.first(x))
        return found * 2 if torch.compiler.is_exporting() else found


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
    (lambda: prune_module(Noisy(), X, "random"), FxpruneError, "returns different outputs for the same inputs"),
    (
        lambda: prune_module(TwoFaced(), X, "random"),
        FxpruneError,
        "the outputs of the traced graph and of TwoFaced differ by",
    ),
    (lambda: prune_module(Silent(), X, "random"), FxpruneError, "returns no tensor"),
    (
        lambda: prune_module(Branching(), X, "random"),
        FxpruneError,
        "cannot trace Branching, at its root module (api/",
    ),
    (lambda: prune_module(linear(), X, "taylor"), RequestError, "taylor needs calibration data or a loss"),
    (lambda: prune_module(linear(), X, "lora"), RequestError, "lora has no data to train on"),
    (lambda: prune_module(linear(), X, "drop"), RequestError, "pass 'drop' needs a causal language model"),
    (
        lambda: prune_module(linear(), X, "taylor", calib=[{"y": X}]),
        RequestError,
        "holds 'y', which Sequential",
    ),
    (lambda: prune_module(linear(), X, "taylor", loss=quadratic, calib=[]), RequestError, "calib holds no batch"),
    (
        lambda: prune_module(linear(), X, "taylor", loss=quadratic, calib="x"),
        RequestError,
        "calib is 'x', not a list of batches",
    ),
    (lambda: prune_module(linear(), X, "taylor", loss=quadratic, calib=3), RequestError, "calib is an int"),
    (lambda: prune_module(linear(), X, "taylor", loss="m:f"), RequestError, "loss is 'm:f', not a function"),
    (lambda: prune_module(linear(), X, 3), RequestError, "a pipeline is text, not int"),
    (lambda: prune_module("demo", X, "random"), RequestError, "'demo' is not a torch.nn.Module"),
    (lambda: prune_module(nn.Linear, X, "random"), RequestError, "the class Linear is not a torch.nn.Module"),
    (lambda: prune_module(linear(), X, "random").save(3), RequestError, "out is an int, not a path"),
    (
        lambda: prune_module(linear(), X, "taylor", loss=lambda m: m(X)),
        RequestError,
        "not a scalar tensor but of shape",
    ),
    (lambda: prune_module(linear(), X, "taylor", loss=lambda _: 1.0), RequestError, "not a scalar tensor but float"),
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
    (lambda: prune_module(nn.Linear(6, 2), X, "random"), RequestError, "nothing to remove"),
    (lambda: resolve_module("no colon"), RequestError, "'no colon' is not of the form package.module:callable"),
    (lambda: resolve_module("fxprune_absent:x"), RequestError, "'fxprune_absent' cannot be imported"),
    (lambda: resolve_module("math:x"), RequestError, "'math' has no 'x'"),
    (lambda: resolve_module("math:sqrt"), RequestError, "math:sqrt() fails: TypeError"),
    (lambda: resolve_module("math:pi"), RequestError, "math:pi is not a torch.nn.Module but float"),
    (lambda: parse_example("float32(2,3)"), RequestError, "cannot be read: unexpected 'float32(2,3)'"),
    (lambda: parse_example(""), RequestError, "cannot be read: unexpected ''"),
    (lambda: parse_example("float32[2],x"), RequestError, "cannot be read: unexpected 'x'"),
    (lambda: parse_example("float33[2]"), RequestError, "'float33' is not a torch dtype"),
    (lambda: parse_example("a=float32[2],int64[3]"), RequestError, "has names for some inputs only"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[2])
def test_what_is_refused(row: tuple[Callable[[], Any], type[FxpruneError], str]) -> None:
    call, kind, message = row
    with pytest.raises(kind) as caught:
        call()
    assert message in caught.value.message
    assert caught.value.hint


def test_recovery_without_labels_needs_a_teacher() -> None:
    with pytest.raises(RequestError, match="finetune: 'data' has no labels") as caught:
        prune_module(linear(), X, "random,finetune", data=[X])
    assert "finetune{teacher=1}" in caught.value.hint


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
