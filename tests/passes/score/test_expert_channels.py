"""expert_channels: every expert loses its own worst channels, which equals zeroing them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode

from fxprune import api
from fxprune.api.pruning import model_run
from fxprune.ir import RequestError
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.score.experts.expert_channels import ExpertChannels

from ...checkpoints import LLAMA, WIDTHS, contents, write_checkpoint
from ...corpora import RandomTokens
from ...decoders import random_decoder
from ...families.causal_lm import tiny_model
from ...states import decoder_state, run_passes
from .test_expert_scores import VOCAB, gpt_oss, mixtral

TEXT = RandomTokens(VOCAB)
SMALL: dict[str, Any] = {"samples": 5, "length": 8}
DOWN = {"mixtral": (mixtral, 2), "gpt_oss": (gpt_oss, 1)}
"""Maker of the model, and the dimension of an expert's last weight that takes its channels in."""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TEXT.windows(8, 5), use_cache=False).logits
    return found


def downs(model: Any) -> list[Any]:
    return [layer.mlp.experts.down_proj for layer in model.model.layers]


def own_scores(model: Any, by: str, dim: int) -> list[torch.Tensor]:
    """``[experts, channels]`` for every layer, from gradients of all weights: for ``taylor`` the vector term of the
    last weight; for ``fisher`` from its inputs by hooks on the linear calls, here of one window at a time."""
    found = [torch.zeros(len(d), d.shape[dim], dtype=torch.float64) for d in downs(model)]
    model.set_experts_implementation("eager")
    if by == "taylor":
        ids = TEXT.windows(8, 5)
        out = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(out, ids[:, 1:].flatten(), reduction="sum")
        grads = torch.autograd.grad(loss, downs(model))
        return [(d * g).sum(3 - dim).abs().detach() for d, g in zip(downs(model), grads, strict=True)]
    last = [d.data_ptr() for d in downs(model)]

    class Inputs(TorchFunctionMode):
        """The inputs of calls on single experts' last weights."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, int, torch.Tensor]] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.nn.functional.linear, torch.Tensor.__matmul__, torch.Tensor.matmul):
                for layer, start in enumerate(last):
                    down = downs(model)[layer]
                    size = down[0].numel() * down.element_size()
                    expert, rest = divmod(args[1].data_ptr() - start, size)
                    if rest == 0 and 0 <= expert < len(down):
                        self.seen.append((layer, expert, args[0]))
            return func(*args, **(kwargs or {}))

    for window in TEXT.windows(8, 5).split(1):
        with Inputs() as inputs:
            out = model(input_ids=window, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(out, window[0, 1:], reduction="sum")
        grads = torch.autograd.grad(loss, [x for _, _, x in inputs.seen])
        for (layer, expert, x), g in zip(inputs.seen, grads, strict=True):
            found[layer][expert] += (x * g).square().sum(0).detach()
    return found


@pytest.mark.parametrize("name", DOWN)
@pytest.mark.parametrize("by", ["fisher", "taylor"])
def test_every_expert_loses_its_own_lowest_channels(name: str, by: str) -> None:
    """Aligned and cut, it computes what the dense model does with those channels of every expert at zero."""
    make, dim = DOWN[name]
    model = make()
    scores = own_scores(model, by, dim)
    masked = make()
    masked.set_experts_implementation("eager")
    with torch.no_grad():
        for down, found in zip(downs(masked), scores, strict=True):
            for expert in range(len(down)):
                for channel in found[expert].argsort()[:4]:
                    down[expert].select(dim - 1, int(channel)).zero_()
    model = make()
    state = decoder_state(model)
    run_passes(state, ExpertChannels(score=by, ratio=0.34, batch=2, **SMALL))
    assert {down.shape[dim] for down in downs(model)} == {8}
    difference = (logits(model) - logits(masked)).abs().max() / logits(masked).abs().max()
    assert float(difference) < 1e-10


@pytest.mark.parametrize("by", ["fisher", "taylor"])
def test_batches_make_no_difference(by: str) -> None:
    found = []
    for batch in (1, 2, 5):
        model = mixtral()
        run_passes(decoder_state(model), ExpertChannels(score=by, batch=batch, ratio=0.34, **SMALL))
        found.append(downs(model))
    assert len(found[0]) == 2, "layers"
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_shared_experts_lose_channels_without_another_order() -> None:
    """Those are dense: a channel of theirs has its own score already."""
    state = decoder_state(tiny_model("qwen2_moe"))
    run_passes(state, ExpertChannels(ratio=0.4, **SMALL))
    report = state.ledger.report["expert_channels"]
    assert report["reordered"] == ["model.layers.0.mlp.experts:width", "model.layers.1.mlp.experts:width"]
    assert report["removed"]["width"]["sizes"] == [20, 24]


def test_bad_requests() -> None:
    with pytest.raises(RequestError, match="no experts with inner channels"):
        run_passes(decoder_state(random_decoder(LLAMA, 0.3, torch.float32)), "expert_channels")
    for text in ("expert_channels{heads=kv}", "expert_channels{experts=true}"):
        with pytest.raises(RequestError, match="is for inner widths only"):
            parse_pipeline([text], PASSES)
    with pytest.raises(RequestError, match="by"):
        parse_pipeline(["expert_channels{by=global}"], PASSES)


def test_a_plan_of_reordered_channels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which positions were cut, and another model has other channels there."""
    monkeypatch.setattr(
        model_run.ModelRun, "read_texts",
        lambda run, *_: setattr(run.state.data, "calibration", RandomTokens(run.config.vocab_size)),
    )  # fmt: skip
    config = transformers.MixtralConfig(**WIDTHS, num_local_experts=4, num_experts_per_tok=2)
    source = write_checkpoint(tmp_path / "source", config)
    found = {}
    for offload in ("none", "disk"):
        api.apply(source, "expert_channels{samples=3,length=8}", ratio=0.5, out=tmp_path / offload, offload=offload)
        found[offload] = contents(tmp_path / offload)
    assert found["disk"] == found["none"]
    with pytest.raises(RequestError, match="is from a run of expert_channels, which reordered"):
        api.apply(source, plan=tmp_path / "none", out=tmp_path / "again")
