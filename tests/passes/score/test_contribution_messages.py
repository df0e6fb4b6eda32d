"""What a bad request for contributions, or a model that cannot be scored, is told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.score.gradients.taylor_terms import taylor as taylor_of
from fxprune.passes.score.units import Contributions, Wanted
from fxprune.passes.score.weight_powers import magnitude
from fxprune.runtime.streaming.block_runner import BlockRunner

from .test_contributions import VARIANTS, build, draw


def taylor(model: Any, *request: Any) -> Any:
    """The contributions of a model that holds its weights."""
    return taylor_of(BlockRunner(model), *request)


def with_nan_gradient(model: nn.Module, runs: tuple[int, ...]) -> nn.Module:
    """A finite loss whose gradient is not, in some runs of the model: the square root of zero."""

    def spoil(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if spoil.calls in runs:  # type: ignore[attr-defined]
            output = output + 0 * (output - output.detach()).sqrt()
        spoil.calls += 1  # type: ignore[attr-defined]
        return output

    spoil.calls = 0  # type: ignore[attr-defined]
    model.model.norm.register_forward_hook(spoil)
    return model


def with_nan_loss(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    return model


class Lossless(nn.Linear):
    def forward(self, **_inputs: Any) -> Any:
        return SimpleNamespace(logits=None)


W = {"model.layers.0.mlp.up_proj.weight": frozenset({0})}
IDLE = {"idle": frozenset({0})}
FLOAT32 = "compute the scores in float32, and check the calibration text"


def idle_model() -> nn.Module:
    model = build("llama-gqa")
    model.register_parameter("idle", nn.Parameter(torch.ones(5, dtype=torch.float64)))
    return model


def int_model() -> nn.Module:
    model = build("llama-gqa")
    model.register_parameter("idle", nn.Parameter(torch.ones(5, dtype=torch.int8), requires_grad=False))
    return model


def run(
    model: nn.Module, variant: str, wanted: Wanted = W, tokens: Tensor | None = None
) -> Callable[[], Contributions]:
    return lambda: taylor(model, draw() if tokens is None else tokens, wanted, variant)


MESSAGES: list[tuple[Callable[[], Contributions], type[FxpruneError], str, str]] = [
    (
        run(build("llama-gqa"), "element3"),
        RequestError,
        "unknown Taylor variant 'element3'",
        "use one of vector, element1, second, element2",
    ),
    *(
        (
            run(build("llama-gqa"), "vector", tokens=tokens),
            RequestError,
            f"calibration tokens of shape {list(tokens.shape)} and type {tokens.dtype}",
            "give int64 token ids [samples, length] with length at least 2",
        )
        for tokens in (draw()[0], draw(3, 1), draw().int(), draw()[:0])
    ),
    (run(build("llama-gqa"), "second", {}), RequestError, "there is no parameter to score", "choose a range of layers"),
    (
        run(build("llama-tied"), "vector", {"lm_head.weight": frozenset({0})}),
        RequestError,
        "the model has no parameter 'lm_head.weight'",
        "use the first name of a shared parameter",
    ),
    (
        run(idle_model(), "vector", {"idle": frozenset({1})}),
        RequestError,
        "'idle' of shape [5] has no dimensions [1]",
        "count them from 0",
    ),
    (run(int_model(), "vector", IDLE), RequestError, "'idle' holds torch.int8", "give a model that is not quantised"),
    (
        lambda: magnitude(build("llama-gqa").to("meta"), W, 2),
        RequestError,
        "'model.layers.0.mlp.up_proj.weight' has no values to score",
        "load the weights: a config alone is not enough",
    ),
    (lambda: magnitude(build("llama-gqa"), W, 0), RequestError, "magnitude: p=0 is below 1", "use p=1"),
    (
        lambda: magnitude(with_nan_loss(build("llama-gqa")), {"model.norm.weight": frozenset({0})}, 2),
        FxpruneError,
        "the weights of 'model.norm.weight' are not finite",
        "repair or download the checkpoint again",
    ),
    *(
        (
            run(idle_model(), variant, IDLE),
            FxpruneError,
            "the loss depends on none of the 1 parameters to score",
            "choose groups that the model's forward pass uses",
        )
        for variant in VARIANTS
    ),
    (
        run(Lossless(2, 2), "vector", {"weight": frozenset({0})}),
        FxpruneError,
        "Lossless returned no loss for labels",
        "give a causal language model",
    ),
    *(
        (run(with_nan_loss(build("llama-gqa")), variant), FxpruneError, f"the loss on {place} is nan", FLOAT32)
        for variant, place in zip(
            VARIANTS,
            ["the calibration batch of 3"] * 2 + ["calibration sample 0 of 3"] * 2,
            strict=True,
        )
    ),
    *(
        (
            run(with_nan_gradient(build("llama-gqa"), runs), variant),
            FxpruneError,
            f"the gradient of 'model.layers.0.mlp.up_proj.weight' on {place} is not finite",
            FLOAT32,
        )
        for variant, runs, place in (
            ("vector", (0,), "the calibration batch of 3"),
            ("element1", (0,), "the calibration batch of 3"),
            ("second", (1,), "calibration sample 1 of 3"),
            ("element2", (0, 1), "the calibration batch of 3"),
        )
    ),
]


@pytest.mark.parametrize(
    ("request_", "kind", "message", "hint"), MESSAGES, ids=lambda value: value[:40] if isinstance(value, str) else None
)
def test_messages(request_: Callable[[], Contributions], kind: type[FxpruneError], message: str, hint: str) -> None:
    with pytest.raises(FxpruneError) as caught:
        request_()
    assert type(caught.value) is kind
    assert caught.value.message == message
    assert hint in caught.value.hint
