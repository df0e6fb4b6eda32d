"""reap, activation_norm and frequency equal their formulas, computed here for every token and every expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from fxprune import api
from fxprune.api.pruning import model_run
from fxprune.ir import RequestError
from fxprune.ir.groups import Kind
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.score.experts.activation_norm import ActivationNorm
from fxprune.passes.score.experts.frequency import Frequency
from fxprune.passes.score.experts.reap import Reap

from ...checkpoints import LLAMA, WIDTHS, contents, write_checkpoint
from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...families.causal_lm import tiny_model
from ...states import decoder_state, run_passes

VOCAB = 37
TEXT = RandomTokens(VOCAB)
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "num_local_experts": 6, "num_experts_per_tok": 2, **special_tokens(VOCAB),
}  # fmt: skip
KINDS: dict[str, Any] = {
    "reap": Reap(), "norm": ActivationNorm(), "square": ActivationNorm(moment="square"), "frequency": Frequency(),
}  # fmt: skip
SMALL: dict[str, Any] = {"samples": 5, "length": 8}


def mixtral() -> Any:
    model = random_decoder(transformers.MixtralConfig(**SIZES), 0.4)
    model.set_experts_implementation("batched_mm")
    return model


def gpt_oss() -> Any:
    sizes = {**SIZES, "layer_types": ["full_attention"] * 2}
    model = random_decoder(transformers.GptOssConfig(**sizes), 0.4)
    model.set_experts_implementation("batched_mm")
    return model


def experts_of(state: Any) -> list[Any]:
    return [group for group in state.subject.coupling.groups.values() if group.kind is Kind.EXPERTS]


def swiglu(experts: Any, x: torch.Tensor, number: int) -> torch.Tensor:
    """What one expert of Mixtral gives for ``x [T, h]``."""
    gate, up = (x @ experts.gate_up_proj[number].T).chunk(2, dim=-1)
    return (functional.silu(gate) * up) @ experts.down_proj[number].T


def with_biases(experts: Any, x: torch.Tensor, number: int) -> torch.Tensor:
    """The same of gpt-oss, whose gates are clamped and whose linear maps have biases."""
    inner = x @ experts.gate_up_proj[number] + experts.gate_up_proj_bias[number]
    return experts._apply_gate(inner) @ experts.down_proj[number] + experts.down_proj_bias[number]


def formulas(model: Any, path: str, expert: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The four scores of a layer: every expert on every token, of which those that the router picked count."""
    seen: list[Any] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args))
    with torch.no_grad():
        model(input_ids=TEXT.windows(8, 5), use_cache=False)
    handle.remove()
    x, picked, weights = seen[0]
    found = {name: np.zeros(6) for name in KINDS}
    with torch.no_grad():
        for number in range(6):
            norms = expert(model.get_submodule(path), x, number).norm(dim=1)
            mine = picked == number
            there = mine.any(1)
            gates = (weights * mine).sum(1)[there]
            found["frequency"][number] = int(there.sum())
            if there.any():
                found["reap"][number] = float((gates * norms[there]).mean())
                found["norm"][number] = float(norms[there].mean())
                found["square"][number] = float(norms[there].square().mean())
    return found


@pytest.mark.parametrize(("make", "expert"), [(mixtral, swiglu), (gpt_oss, with_biases)])
def test_scores_equal_their_formulas(make: Any, expert: Any) -> None:
    model = make()
    state = decoder_state(model)
    groups = experts_of(state)
    assert len(groups) == 2, "layers"
    for number, group in enumerate(groups):
        expected = formulas(model, f"model.layers.{number}.mlp.experts", expert)
        for name, step in KINDS.items():
            found = (
                type(step)(**SMALL, batch=2, moment=step.moment)
                if name in ("norm", "square")
                else type(step)(**SMALL, batch=2)
            )
            np.testing.assert_allclose(found.scores(groups, state)[group.name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("kind", [Reap, ActivationNorm, Frequency])
def test_batches_make_no_difference(kind: Any) -> None:
    state = decoder_state(mixtral())
    groups = experts_of(state)
    found = [kind(**SMALL, batch=batch).scores(groups, state) for batch in (1, 2, 5)]
    assert len(found[0]) == len(groups) == 2, "layers"
    for other in found[1:]:
        for name, scores in found[0].items():
            np.testing.assert_allclose(other[name], scores, rtol=1e-10)


def test_an_expert_that_no_token_reaches_goes_first() -> None:
    """Biases of a router decide: one far below all others is never picked."""
    model = gpt_oss()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.router.bias[3] = -1e9
    state = decoder_state(model)
    groups = experts_of(state)
    for step in (Reap, ActivationNorm, Frequency):
        for scores in step(**SMALL).scores(groups, state).values():
            assert scores[3] == 0
            assert (np.delete(scores, 3) > 0).all()
    assert Frequency(**SMALL).scores(groups, state)[groups[0].name].sum() == 2 * 5 * 8, "every token has two experts"


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("passes", ["reap", "activation_norm", "frequency", "fisher{heads=off}", "taylor{heads=off}"])
def test_where_weights_are_makes_no_difference(passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, and from disk block by block: the same files."""
    monkeypatch.setattr(
        model_run.ModelRun, "read_texts",
        lambda run, *_: setattr(run.state.data, "calibration", RandomTokens(run.config.vocab_size)),
    )  # fmt: skip
    config = transformers.MixtralConfig(**WIDTHS, num_local_experts=4, num_experts_per_tok=2)
    source = write_checkpoint(tmp_path / "source", config)
    step = passes.replace("}", ",samples=3,length=8}") if "{" in passes else passes + "{samples=3,length=8}"
    found = {}
    for offload in ("none", "disk"):
        api.apply(source, step, ratio=0.5, out=tmp_path / offload, offload=offload)
        found[offload] = contents(tmp_path / offload)
    assert found["disk"] == found["none"]


@pytest.mark.parametrize("name", ["reap", "activation_norm", "frequency"])
def test_a_dense_model_has_no_experts(name: str) -> None:
    with pytest.raises(RequestError, match="the model has no experts that a router picks"):
        run_passes(decoder_state(random_decoder(LLAMA, 0.3, torch.float32)), f"{name}{{samples=2,length=8}}")


def test_bad_requests() -> None:
    for text in ("reap{heads=kv}", "frequency{ffn=true}", "activation_norm{heads=query,experts=false}"):
        with pytest.raises(RequestError, match="scores whole experts only"):
            parse_pipeline([text], PASSES)
    with pytest.raises(RequestError, match="moment"):
        parse_pipeline(["activation_norm{moment=cube}"], PASSES)
    state = decoder_state(mixtral())
    widths = [group for group in state.subject.coupling.groups.values() if group.kind is Kind.WIDTH]
    with pytest.raises(RequestError, match="no stack of linear maps holds its units as experts"):
        Reap(**SMALL).scores(widths, state)


def test_experts_that_all_run_on_all_tokens_are_refused() -> None:
    state = decoder_state(tiny_model("llama4_text"))
    with pytest.raises(RequestError, match="its experts are not called one by one"):
        Reap(**SMALL).scores(experts_of(state), state)
