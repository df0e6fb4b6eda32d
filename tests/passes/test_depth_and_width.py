"""Depth and width under one budget, which counts from the model before anything went."""

from __future__ import annotations

import copy

import pytest
import torch

from fxprune.ir.cost import macs
from fxprune.passes.model.measure import parameter_count
from fxprune.tracer.export import trace_model

from ..states import decoder_state, run_passes
from .select.test_allocate import make

DROP = "samples=2,length=8"


def cost(model: torch.nn.Module, measure: str, shape: tuple[int, ...]) -> int:
    """On inputs of one shape: those of a trace depend on the numbers in the configuration, and so on the depth."""
    ids = torch.zeros(shape, dtype=torch.long)
    if measure == "params":
        return parameter_count(model)
    return macs(trace_model(model, {"input_ids": ids, "use_cache": False}).graph)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("depth", "width", "share"),
    [
        (f"drop{{layers=1,{DROP}}}", "magnitude{target=params:0.55,by=global}", 0.55),
        (f"drop{{sub_blocks=2,{DROP}}}", "taylor{target=params:0.4,by=global,samples=2,length=8}", 0.4),
        (f"drop{{layers=1,sub_blocks=1,{DROP}}}", "magnitude{target=macs:0.35,by=global}", 0.35),
    ],
)
def test_what_is_left_is_the_share_of_the_whole_model(kind: str, depth: str, width: str, share: float) -> None:
    model = make(kind)
    whole = copy.deepcopy(model)
    state = decoder_state(model)
    run_passes(state, f"{depth},{width}")
    measure = "macs" if "macs" in width else "params"
    now, then = (cost(held, measure, state.subject.graph.inputs[0].shape) for held in (state.subject.model, whole))
    assert abs(now / then - share) <= 0.005 * share
