"""A rewritten graph trains as the class it stands for: batch normalisation follows its mode."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.backends.pt2.training_mode import BatchNorm

from ...nets import build, images


@pytest.fixture(scope="module")
def both() -> tuple[Pruned, Pruned]:
    """One cut of two nets with the same weights, without dropout: repaired in place, and rewritten."""
    made = []
    for name in ("plain", "hard-coded width"):
        net = build(name).double().train()
        net.classifier[2].p = 0.0
        made.append(prune_module(net, images().double(), "random", ratio=0.4, seed=1))
    return made[0], made[1]


def normed(module: nn.Module) -> list[BatchNorm]:
    return [child for child in module.modules() if isinstance(child, BatchNorm)]


def test_it_normalises_by_the_batch_and_learns_running_statistics(both: tuple[Pruned, Pruned]) -> None:
    plain, rewritten = (copy.deepcopy(pruned.module) for pruned in both)
    assert isinstance(rewritten, fx.GraphModule)
    assert rewritten.training
    assert len(normed(rewritten)) == 2
    x = images(4).double()
    assert not torch.allclose(copy.deepcopy(plain).eval()(x), plain(x))
    plain = copy.deepcopy(both[0].module)
    torch.testing.assert_close(rewritten(x), plain(x))
    held, expected = dict(rewritten.named_buffers()), dict(plain.named_buffers())
    for name in ("features.0.1.running_mean", "features.3.1.running_var"):
        torch.testing.assert_close(held[name], expected[name])
        assert not torch.equal(held[name], dict(both[1].module.named_buffers())[name])
    torch.testing.assert_close(rewritten.eval()(x), plain.eval()(x))


def test_a_step_of_training_is_the_step_of_the_class(both: tuple[Pruned, Pruned]) -> None:
    modules = [copy.deepcopy(pruned.module) for pruned in both]
    for module in modules:
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        F.cross_entropy(module(images(4).double()), torch.tensor([0, 1, 2, 3])).backward()
        optimiser.step()
    plain, rewritten = (dict(module.named_parameters()) for module in modules)
    assert plain.keys() == rewritten.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(rewritten[name], tensor)


def test_what_is_written_after_training_is_in_evaluation_mode(both: tuple[Pruned, Pruned], tmp_path: Path) -> None:
    _, rewritten = both
    rewritten.save(tmp_path / "out")
    x = images(3).double()
    with torch.no_grad():
        torch.testing.assert_close(fxprune.load(tmp_path / "out")(x), copy.deepcopy(rewritten.module).eval()(x))


class Untracked(nn.Module):
    """Batch normalisation that holds no statistics is by the batch in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, track_running_stats=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)).view(x.shape[0], 12))


def test_without_statistics_the_mode_makes_no_difference() -> None:
    pruned = prune_module(Untracked(), images(), "random", ratio=0.5, seed=0)
    assert isinstance(pruned.module, fx.GraphModule)
    assert not normed(pruned.module)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module.train()(images(4)), pruned.module.eval()(images(4)))
