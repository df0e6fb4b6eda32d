"""obs and compensate on a trained model in float32 equal slow programs in float64 that compute everything anew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from fxprune.demo import MODEL_DIR, text
from fxprune.ir.groups import HEAD_KINDS, Group, Kind
from fxprune.passes.recover.compensate import Compensate
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.score.obs import Obs
from fxprune.passes.select.select import select
from fxprune.passes.state import State
from fxprune.tracer.texts.corpus import from_string

from ...states import decoder_state, run_passes

SAMPLES, LENGTH, DAMPING, ROUNDS = 12, 64, 0.01, 16


def trained() -> State:
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    return decoder_state(model, calibration=from_string("recovery", text("recovery"), tokenizer))


def windows(state: State) -> Tensor:
    return state.data.text("a test needs").windows(LENGTH, SAMPLES, None)


def seen(model: Any, path: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of a module ``[T, k]``, and the gradients of the summed loss at its outputs, ``[T, n]``: float64."""
    found: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _m, args, out: found.extend((args[0], out)))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    hook.remove()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, found[1])
    return found[0].detach().flatten(0, 1).double(), gradient.flatten(0, 1).double()


def slow_scores(state: State, group: Group, path: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores of all units of a group that one linear map reads: every round inverts anew what is left."""
    weight = state.subject.model.get_submodule(path).weight.detach().double()  # type: ignore[union-attr, operator]
    x, gradient = seen(state.subject.model, path, windows(state))
    metric = gradient.T @ gradient / (SAMPLES * (LENGTH - 1)) ** 2
    system = x.T @ x
    ridge = DAMPING * float(system.diagonal().mean())
    system += ridge * torch.eye(len(system), dtype=torch.float64)
    width = weight.shape[1] // group.units
    at_once = 1 if group.kind in HEAD_KINDS else math.ceil((group.units - 1) / ROUNDS)
    scores, total, alive = np.zeros(group.units), 0.0, list(range(group.units))
    while True:
        kept = [column for unit in alive for column in range(unit * width, (unit + 1) * width)]
        inverse = torch.linalg.inv(system[kept][:, kept])
        best = (inverse @ system[kept] @ weight.T).T
        costs = np.zeros(len(alive))
        for at, unit in enumerate(alive):
            part = slice(at * width, (at + 1) * width)
            inner = torch.linalg.inv(inverse[part, part])
            gone, before = best[:, part], weight[:, unit * width : (unit + 1) * width]
            costs[at] = 0.5 * float((metric * (gone @ inner @ gone.T)).sum())
            costs[at] -= 0.5 * ridge * float((before * (metric @ before)).sum())
        if len(alive) == 1:
            scores[alive] = total + costs
            return scores
        order = np.argsort(costs, kind="stable")[: min(at_once, len(alive) - 1)]
        scores[[alive[at] for at in order]] = total + costs[order].cumsum()
        total += float(costs[order].sum())
        alive = [unit for at, unit in enumerate(alive) if at not in order]


@pytest.mark.parametrize("kind", [Kind.WIDTH, Kind.KV_HEADS])
def test_scores_for_any_budget_and_what_is_cut(kind: Kind) -> None:
    state = trained()
    assert state.subject.coupling is not None
    groups = [g for g in state.subject.coupling.groups.values() if g.frozen is None and g.kind is kind]
    assert len(groups) > 1
    step = Obs(by="global", target="params:0.8", samples=SAMPLES, length=LENGTH, damping=DAMPING, rounds=ROUNDS)
    found = step.scores(groups, state)
    path = "mlp.down_proj" if kind is Kind.WIDTH else "self_attn.o_proj"
    slow = {g.name: slow_scores(state, g, f"{g.name.rpartition('.')[0]}.{path}") for g in groups}
    for group in groups:
        np.testing.assert_allclose(found[group.name], slow[group.name], rtol=1e-6)
        for ratio in (0.3, 0.5):
            kept, wanted = (select([group], scores, ratio)[group.name] for scores in (found, slow))
            assert np.array_equal(kept, wanted)


def test_refitted_weights() -> None:
    """Given what the maps before became; the rounding of float32 activations is all that is between the two."""
    state = trained()
    ids = windows(state)
    run_passes(state, Magnitude(ratio=0.4), Compensate(samples=SAMPLES, length=LENGTH, damping=DAMPING, residual=False))
    model, dense, plan = state.subject.model, state.before.same_layers, state.ledger.plan
    assert dense is not None
    assert plan is not None
    refitted = state.ledger.report["compensate"]["refitted"]
    assert len(refitted) > 2
    for tensor in refitted:
        path = tensor.removesuffix(".weight")
        original = dense.get_parameter(tensor).detach().double()
        before = original[:, plan.slices[tensor, 1]]
        x, full = seen(model, path, ids)[0], seen(dense, path, ids)[0]
        system = x.T @ x
        ridge = DAMPING * float(system.diagonal().mean())
        right = x.T @ (full @ original.T) + ridge * before.T
        expected = torch.linalg.solve(system + ridge * torch.eye(len(system), dtype=torch.float64), right).T
        difference = (model.get_parameter(tensor).detach().double() - expected).abs().max()
        assert float(difference) <= 1e-6 * float(expected.abs().max()), tensor
