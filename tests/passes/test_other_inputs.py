"""Passes on other models than language models, with data sets of their inputs: text, speech, images, any module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.ir.errors import RequestError
from fxprune.passes.couple.coupling import couple
from fxprune.passes.model.answers import answer_of, distance
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.state import State
from fxprune.runtime.model.keywords import caching
from fxprune.tracer.example import trace_call
from fxprune.tracer.inputs.arguments import Arguments
from fxprune.tracer.inputs.batches import inputs_of_batches
from fxprune.tracer.inputs.input_set import DataSet
from fxprune.tracer.module import bind, trace_module

from ..equivalence import TOLERANCE, masked
from ..families.other import tiny_model
from ..nets import Plain
from ..runtime.test_block_runner import offloaded
from ..states import run_passes, state_of

pytestmark = pytest.mark.usefixtures("one_thread")


def tokens(count: int, length: int) -> torch.Tensor:
    return 3 + (torch.arange(count * length).view(count, length) * 7919 + torch.arange(count)[:, None] ** 2) % 27


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BATCHES: dict[str, Callable[[int], dict[str, torch.Tensor]]] = {
    "bert": lambda seed: {"input_ids": tokens(12 + seed, 9)[-12:]},
    "whisper": lambda seed: {"input_features": drawn(seed, 6, 10, 28), "labels": tokens(6 + seed, 7)[-6:]},
    "vit": lambda seed: {"pixel_values": drawn(seed, 8, 3, 32, 32), "labels": torch.arange(8) % 2},
    "t5": lambda seed: {"input_ids": tokens(8 + seed, 5)[-8:], "labels": tokens(9 + seed, 7)[-8:]},
    "net": lambda seed: {"x": drawn(seed, 16, 3, 16, 16)},
}
MODELS = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("vit", "t5") else pytest.param(name) for name in BATCHES
]
SMALL = "samples=6,length=16,batch=2"


def ratio(name: str) -> str:
    """Half of what a model has: of a convolutional network its channels."""
    return f"ratio=0.5,channels={'true' if name == 'net' else 'false'}"


def data_of(name: str, model: nn.Module, seed: int = 0) -> DataSet:
    return inputs_of_batches(name, [BATCHES[name](seed)], Arguments.of(model))


def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    if name == "net":
        torch.manual_seed(0)
        return Plain().to(dtype).eval()
    return tiny_model(name).to(dtype)


def started(name: str, model: nn.Module, **parts: Any) -> State:
    example = {key: value[:2] for key, value in BATCHES[name](0).items()}
    if name == "net":
        traced = trace_module(model, bind(model, example["x"].to(next(model.parameters()).dtype)), batch=True)
    else:
        if "labels" in example and name in ("whisper", "t5"):
            example["decoder_input_ids"] = example.pop("labels")
        example.pop("labels", None)
        traced = trace_call(copy.deepcopy(model).float(), example)
    dtype = next(model.parameters()).dtype
    call = {
        key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in traced.example.items()
    }
    given = {"coupling": couple(traced.graph), "example": call, "outputs": traced.outputs}
    return state_of(traced.graph, model, **{**given, "calibration": data_of(name, model), **parts})


def apart(name: str, model: nn.Module, dense: nn.Module) -> float:
    """The distance of two models on samples that no pass has read."""
    dtype = next(model.parameters()).dtype
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in BATCHES[name](5).items()}
    with torch.no_grad():
        now, then = (answer_of(each(**batch, **caching(each, False)), batch) for each in (model, dense))
    return float(distance(now, then))


@pytest.mark.parametrize("name", MODELS)
def test_compensate_brings_the_model_nearer_to_the_dense_one(name: str) -> None:
    dense = built(name)
    found = {}
    for passes in ("wanda", "wanda,compensate"):
        model = copy.deepcopy(dense)
        steps = [
            f"{step}{{{SMALL},{ratio(name)}}}" if step == "wanda" else f"{step}{{{SMALL}}}"
            for step in passes.split(",")
        ]
        state = run_passes(started(name, model), ",".join(steps))
        found[passes] = apart(name, state.subject.model, dense)
    assert 0 < found["wanda,compensate"] < 0.9 * found["wanda"]


@pytest.mark.parametrize("metric", ["loss", "outputs"])
@pytest.mark.parametrize("name", MODELS)
def test_what_obs_removes_equals_zeroing_it(name: str, metric: str) -> None:
    dense = built(name)
    state = run_passes(started(name, copy.deepcopy(dense)), f"obs{{{SMALL},{ratio(name)},metric={metric},rounds=2}}")
    plan = state.ledger.plan
    assert plan is not None
    assert plan.keep
    zeroed = masked(dense, plan)
    assert apart(name, state.subject.model, dense) > TOLERANCE
    assert apart(name, state.subject.model, zeroed) <= TOLERANCE


@pytest.mark.parametrize(
    "step", ["taylor", "fisher", "flap", "activation", "wanda{by=search,target=params:0.9,moves=2}"]
)
@pytest.mark.parametrize("name", ["bert", pytest.param("whisper", marks=pytest.mark.slow), "net"])
def test_every_score_reads_inputs(name: str, step: str) -> None:
    if name == "net" and "search" in step:
        pytest.skip("its channels cross norms, which a search does not measure")
    options = "samples=4,length=16" + ("" if step == "taylor" else ",batch=2")
    options += ",channels=true" if name == "net" else ""
    text = step.replace("}", f",{options}}}") if "{" in step else f"{step}{{{options}}}"
    state = run_passes(started(name, built(name, torch.float32)), text)
    assert state.ledger.plan is not None
    assert state.ledger.plan.keep


TRAINING: dict[str, Any] = {"lr": 3e-3, "batch": 4, "micro_batch": 2, "length": 16, "steps": 12, "teacher": 1.0}


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    "step", [Distill(**TRAINING), Lora(**TRAINING, r=4), Finetune(**TRAINING)], ids=lambda s: s.name
)
@pytest.mark.parametrize("name", MODELS)
def test_recovery_brings_the_model_nearer_to_the_dense_one(name: str, step: Any) -> None:
    dense = built(name, torch.float32)
    state = started(name, copy.deepcopy(dense), recovery=data_of(name, dense))
    state = run_passes(state, f"random{{{ratio(name)},seed=1}},{step.name}{{{options(step)}}}")
    losses = state.ledger.report[step.name]["loss"]
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert state.ledger.report[step.name]["samples"] == len(data_of(name, dense).rows(16))
    assert not state.subject.model.training


def options(step: Any) -> str:
    given = {**TRAINING, **({"r": step.r} if isinstance(step, Lora) else {})}
    return ",".join(f"{name}={value:g}" for name, value in given.items())


@pytest.mark.parametrize("name", ["whisper", "vit"])
def test_labels_train_without_a_teacher(name: str) -> None:
    model = built(name, torch.float32)
    state = started(name, model, recovery=data_of(name, model))
    report = run_passes(state, "finetune{lr=0.003,batch=4,micro_batch=4,steps=10,length=16}").ledger.report["finetune"]
    assert report["loss"][-1] < 0.9 * report["loss"][0]


def test_training_starts_at_the_distance_from_the_dense_model() -> None:
    """One step over all samples at once: the mean over micro-batches is that over the batch."""
    dense = built("bert", torch.float32)
    state = run_passes(started("bert", copy.deepcopy(dense)), "random{ratio=0.5}")
    data = data_of("bert", dense)
    batch = data.join(data.rows(16))
    with torch.no_grad():
        expected = float(distance(answer_of(state.subject.model(**batch), batch), answer_of(dense(**batch), batch)))
    state.before.model, state.data.recovery = dense, data
    Distill(**TRAINING | {"batch": 12, "micro_batch": 4, "steps": 1}).run(state)
    assert state.ledger.report["distill"]["loss"] == [pytest.approx(expected, rel=1e-4)]


def test_blocks_of_encoder_and_decoder_are_distilled() -> None:
    dense = built("whisper", torch.float32)
    state = started("whisper", copy.deepcopy(dense), recovery=data_of("whisper", dense))
    state = run_passes(state, "random{ratio=0.5},distill{blocks=4,steps=1,batch=2,micro_batch=2,length=16,lr=0.003}")
    pairs = state.ledger.report["distill"]["blocks"]
    assert len(pairs) == 4
    assert all(last < first for first, last in pairs)


@pytest.mark.parametrize("name", ["bert", pytest.param("whisper", marks=pytest.mark.slow)])
def test_where_weights_are_makes_no_difference(name: str, tmp_path: Path) -> None:
    dense = built(name, torch.float32)
    passes = f"obs{{{SMALL},ratio=0.5,rounds=2}},compensate{{{SMALL}}}"
    here = run_passes(started(name, copy.deepcopy(dense)), passes)
    runner = offloaded(dense, tmp_path, on_disk=True)
    there = started(name, copy.deepcopy(dense))
    there.subject.model, there.subject.residence = runner.model, runner.residence
    there = run_passes(there, passes)
    for key, value in here.subject.model.named_parameters():
        assert torch.allclose(
            there.subject.runner.value(key), value, rtol=0, atol=1e-5 * float(value.detach().abs().max())
        ), key


def test_padding_changes_no_score() -> None:
    """Samples of different lengths are never filled up for a score, whatever the batch is."""
    model = built("bert")
    rows = [{"input_ids": tokens(9, length)[:3]} for length in (4, 7, 5)]
    singles = [{"input_ids": row["input_ids"][at : at + 1]} for row in rows for at in range(3)]
    plans = []
    for batches in (rows, singles):
        data = inputs_of_batches("rows", batches, Arguments.of(model))
        state = run_passes(
            started("bert", copy.deepcopy(model), calibration=data), "wanda{samples=9,batch=4,length=16,ratio=0.5}"
        )
        assert state.ledger.plan is not None
        plans.append({name: kept.tolist() for name, kept in state.ledger.plan.keep.items()})
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("passes", "message", "hint"),
    [
        ("wanda{samples=99}", "'bert' is too short: it holds 12 samples, 99 are needed", "samples=12"),
        ("drop", "drop needs text, and 'bert' holds inputs of another kind", "leave the pass out"),
        ("generate", "generate adds windows to a text, and 'bert' holds inputs", "leave generate out"),
        ("random,finetune", "finetune: 'bert' has no labels to learn from", "finetune{teacher=1}"),
        ("random,distill{top_k=3}", "distill: top_k is for text", "leave top_k out"),
    ],
)
def test_what_is_refused(passes: str, message: str, hint: str) -> None:
    model = built("bert")
    state = started("bert", model, recovery=data_of("bert", model))
    with pytest.raises(RequestError) as caught:
        run_passes(state, passes)
    assert message in caught.value.message
    assert hint in caught.value.hint
