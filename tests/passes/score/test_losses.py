"""Scores from losses that the user gives, for models that are no language models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.api.modules.prune import prune_module
from fxprune.passes.score.gradients.taylor_of_losses import taylor_of_losses
from fxprune.passes.score.position_scores import position_sums
from fxprune.runtime.streaming.block_runner import BlockRunner

from ...nets import build, images, quadratic


@pytest.mark.parametrize("variant", ["vector", "element1", "second", "element2"])
def test_scores_of_losses_follow_the_papers_formulas(variant: str) -> None:
    net = build("plain").double()
    batches = [images(2).double(), images(3).double()]
    wanted = {"features.0.0.weight": frozenset({0, 1}), "classifier.0.bias": frozenset({0})}
    found = taylor_of_losses(BlockRunner(net), [lambda m, b=b: quadratic(m, b) for b in batches], wanted, variant)
    gradients = []
    for batch in batches:
        net.zero_grad()
        quadratic(net, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    assert found.keys() == {(name, dim) for name, dims in wanted.items() for dim in dims}
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
    result = prune_module(net, torch.randn(4, 6), "taylor", ratio=0.25, loss=quadratic, calib=[torch.randn(4, 6)])
    assert result.plan.slices["0.weight", 0].tolist() == [0, 2, 3, 5, 6, 7]
