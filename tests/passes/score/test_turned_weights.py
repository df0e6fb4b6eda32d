"""Linear maps that read their weight by a transpose are scored and refitted as any other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.passes.calibrate.linear_calls import LinearCallRecorder
from fxprune.passes.recover.compensate import Compensate
from fxprune.passes.score.fisher import Fisher
from fxprune.passes.score.obs import Obs
from fxprune.passes.score.wanda import Wanda

from ...states import decoder_state, run_passes
from .test_activation_scores import READ, group_of, make

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attribute": lambda x, weight: x @ weight.T,
    "matrix": lambda x, weight: torch.matmul(x, weight.mT),
    "t": lambda x, weight: x.matmul(weight.t()),
    "transpose": lambda x, weight: x @ weight.transpose(0, 1),
    "negative": lambda x, weight: x @ weight.transpose(-1, -2),
    "swapaxes": lambda x, weight: x @ torch.swapaxes(weight, 0, 1),
    "permute": lambda x, weight: x @ weight.permute(1, 0),
    "permute by tuple": lambda x, weight: x @ torch.permute(weight, (1, 0)),
    "copied": lambda x, weight: x @ weight.T.contiguous(),
    "cast": lambda x, weight: x @ weight.to(x.dtype).t().clone(),
    "twice": lambda x, weight: F.linear(x, weight.T.T),
}


def turned(way: str) -> nn.Module:
    """The model of every test here, with each linear map computed in another way."""

    class Turned(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return WAYS[way](x, self.weight)

    model: nn.Module = make()
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Turned
    return model


@pytest.mark.parametrize("way", WAYS)
def test_a_call_is_recorded_with_the_dimension_that_it_sums_over(way: str) -> None:
    layer, x = nn.Linear(5, 3, bias=False), torch.randn(2, 4, 5)
    with LinearCallRecorder({"weight": layer.weight}) as recorder:
        y = WAYS[way](x, layer.weight)
    (call,) = recorder.calls
    assert (call.tensor, call.expert, call.dim) == ("weight", None, 1)
    torch.testing.assert_close(call.x, x.flatten(0, 1))
    torch.testing.assert_close(call.y, y.flatten(0, 1))
    torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("way", ["attribute", "cast"])
def test_scores_and_refits_equal_those_of_plain_linear_maps(way: str) -> None:
    plain, other = decoder_state(make()), decoder_state(turned(way))
    for kind, name in itertools.product((Wanda, Obs, Fisher), READ):
        step = kind(samples=4, length=8, batch=2, ratio=0.5)
        found = [step.scores([group_of(state, name)], state)[name] for state in (plain, other)]
        np.testing.assert_allclose(found[1], found[0], rtol=1e-5, err_msg=f"{kind.name} {name}")
    for state in (plain, other):
        run_passes(state, Wanda(samples=4, length=8, ratio=0.5), Compensate(samples=4, length=8))
    ours, theirs = plain.subject.model.state_dict(), other.subject.model.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5, msg=name)
