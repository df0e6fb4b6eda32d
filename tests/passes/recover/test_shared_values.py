"""Recovery of a model that shares its values with the one that it looks back at."""

from __future__ import annotations

import functools

import pytest
import torch

from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.state import State
from fxprune.runtime.tensors import twin
from fxprune.tracer.export import Traced, trace_causal_lm

from ...corpora import RepeatedTokens
from ...decoders import llama
from ...states import decoder_state, run_passes, state_of

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = "steps=2,batch=2,micro_batch=2,length=12,lr=0.01"


@functools.cache
def traced() -> Traced:
    return trace_causal_lm(llama())


def pipeline_on(text: str) -> State:
    return run_passes(decoder_state(llama(), traced(), recovery=RepeatedTokens()), text)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    "last",
    [
        f"lora{{{SHORT},teacher=0.5}}",
        f"finetune{{{SHORT},teacher=0.5}}",
        f"distill{{{SHORT}}}",
        f"distill{{{SHORT},blocks=2}}",
        f"lora{{{SHORT}}},distill{{{SHORT}}}",
    ],
)
def test_training_leaves_the_dense_model_as_it_was(last: str) -> None:
    state = pipeline_on(f"magnitude{{ratio=0.5}},{last}")
    assert state.before.model is not None
    dense, now = state.before.model.state_dict(), state.subject.model.state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in llama().state_dict().items())
    shared = {name for name in dense if dense[name].data_ptr() == now[name].data_ptr()}
    if last.startswith("lora{" + SHORT + ",teacher"):
        assert "model.embed_tokens.weight" in shared  # which no adapter is merged into, so no copy is made
    else:
        assert not shared


def test_a_model_that_only_layers_are_compared_with_stays_too() -> None:
    for step in (Lora, Finetune):
        model = llama()
        dense = twin(model)
        step_of_two = step(steps=2, batch=2, micro_batch=2, length=12, lr=0.01)
        step_of_two.run(state_of(None, model, recovery=RepeatedTokens(), same_layers=dense))
        whole = llama().state_dict()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in dense.state_dict().items())
        assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, whole["model.layers.0.mlp.up_proj.weight"])
