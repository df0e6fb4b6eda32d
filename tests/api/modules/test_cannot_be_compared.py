"""Modules that cannot be pruned, each told why: weights that are not there, NaN, state, branches, complex numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.api.modules.prune import prune_module
from fxprune.api.terminal.streams import missing_package
from fxprune.ir.errors import FxpruneError, RequestError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def with_nan() -> nn.Module:
    found = net()
    found[0].weight.data[3] = float("nan")
    return found


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return net()


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        self.average.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
        return self.second(hidden + self.average)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4, dtype=torch.cfloat))
        self.second = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second((x.to(torch.cfloat) @ self.weight.T).abs())


class Deciding(nn.Module):
    """Its forward calls itself otherwise than ``self``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(s, x: Tensor) -> Tensor:
        hidden = s.first(x)
        return s.second(-hidden if hidden.sum() > 0 else hidden)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.inner(inputs["x"])
        return found


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (with_nan(), X, "Sequential gives NaN on the example: its tensor '0.weight' holds NaN"),
        (net(), X * float("nan"), "Sequential gives NaN on the example: input 0 holds NaN"),
        (net(), X * float("inf"), "Sequential gives NaN on the example"),
        (on_meta(), X.to("meta"), "Sequential has no weights: '0.weight' is on the meta device"),
        (on_meta(), X, "Sequential has no weights: '0.weight' is on the meta device"),
        (Averaging(), X, "the forward of Averaging changes 'average', on which its outputs depend"),
        (Complex(), X, "'weight' holds torch.complex64, and scores are of real numbers"),
    ],
)
def test_it_is_said_why(module: nn.Module, inputs: Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prune_module(module, inputs, "magnitude", ratio=0.25)


def test_a_branch_is_named_by_its_line_and_nothing_else_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FxpruneError, match=r"at its root module \(modules/test_cannot_be_compared.py:\d+\)"):
        prune_module(Deciding(), X, "magnitude", ratio=0.25)
    assert capfd.readouterr() == ("", "")


def test_nested_arguments_are_no_data_set() -> None:
    given: Any = {"inputs": {"x": X}}
    with pytest.raises(RequestError, match=r"batch 0 of 'calib': 'inputs' is a dict, and the arguments .* are tensors"):
        prune_module(Nested(), given, "obs", ratio=0.25, calib=[given])


def test_a_range_that_holds_no_layer_is_told_of() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 16)
            inner = [nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2)]
            self.blocks, self.last = nn.ModuleList(inner), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = x + block(x)
            found: Tensor = self.last(x)
            return found

    found = prune_module(Blocks(), X, "magnitude", ratio=0.25, layers="5:9")
    assert found.report["magnitude"]["remarks"][0] == "layers=5:9 holds no layer: the last one is 1"


def test_a_gap_in_an_installation_is_no_bug_of_ours() -> None:
    def wrapped(name: str) -> ImportError:
        try:
            try:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("Could not import module 'Trainer'.") from error
        except ImportError as error:
            return error

    found = missing_package(wrapped("multiprocess.pool"))
    assert found is not None
    assert (found.message.split(",")[0], found.hint.split(";")[0]) == (
        "the package 'multiprocess' is not installed", "pip install multiprocess",
    )  # fmt: skip
    assert missing_package(wrapped("fxprune.api.gone")) is None
    assert missing_package(ValueError("x")) is None
