"""Recovery that trains all weights, and recovery that learns from the dense model."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.recover.base import Recovery
from fxprune.passes.recover.block_distillation import distil_blocks
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.teacher import PresentTeacher
from fxprune.passes.recover.training import pad
from fxprune.passes.state import State
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import Traced, trace_causal_lm

from ...corpora import RepeatedTokens, RunningTokens, UnequalRows
from ...decoders import VOCABULARY, llama
from ...states import decoder_state, run_passes, state_of
from .test_lora import weights

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"lr": 0.01, "batch": 4, "micro_batch": 2, "length": 12, "steps": 12}
TEXT = RunningTokens(VOCABULARY, 32 * 12)


def divergence(student: torch.nn.Module, teacher: torch.nn.Module, windows: int = 8) -> float:
    """Mean KL(teacher || student) of a next token, in nats, by its definition."""
    ids = TEXT.windows(12, windows)
    with torch.no_grad():
        now, then = (model(ids).logits.double().log_softmax(-1) for model in (student, teacher))
    return float((then.exp() * (then - now)).sum(-1)[:, :-1].mean())


def damaged(model: LlamaForCausalLM) -> LlamaForCausalLM:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
    return other


def recover(step: Recovery, model: torch.nn.Module, dense: torch.nn.Module | None, data: Any = None) -> dict[str, Any]:
    state = state_of(None, model, recovery=data or TEXT, dense=dense)
    step.run(state)
    assert state.subject.model is model
    report: dict[str, Any] = state.ledger.report[step.name]
    return report


@pytest.mark.parametrize("step", [Distill(**OPTIONS), Finetune(**OPTIONS, teacher=1.0), Lora(**OPTIONS, teacher=1.0)])
def test_a_teacher_brings_the_model_nearer_to_it(step: Recovery) -> None:
    dense = llama()
    model = damaged(dense)
    held, before = weights(dense), divergence(model, dense)
    recover(step, model, dense)
    assert divergence(model, dense) < 0.7 * before
    assert all(torch.equal(tensor, held[name]) for name, tensor in dense.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in (*model.parameters(), *dense.parameters()))
    assert "peft_config" not in vars(model)


@pytest.mark.parametrize("step", [Distill, Finetune, Lora])
def test_the_first_loss_is_the_distance_from_the_teacher(step: type[Recovery]) -> None:
    """On all windows at once, before anything is learned; in float32, as the formula below."""
    dense = llama()
    model = damaged(dense)
    before = divergence(model, dense, 32)
    report = recover(step(**OPTIONS | {"batch": 32, "micro_batch": 8, "steps": 1, "teacher": 1.0}), model, dense)
    assert report["loss"] == [pytest.approx(before, rel=1e-5)]


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn() -> None:
    dense = llama()
    model = copy.deepcopy(dense)
    report = recover(Distill(**OPTIONS | {"lr": 1e-12, "steps": 2}), model, dense)
    assert report["loss"] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_one_of_the_formula(temperature: float) -> None:
    dense, student = llama(), damaged(llama())
    batch = pad([{"input_ids": ids, "labels": ids} for ids in ([1, 2, 3, 4], [5, 6, 7])])
    teacher = PresentTeacher(dense, 0.25, temperature)
    teacher.answer(batch)
    with torch.no_grad():
        out = student(batch["input_ids"], attention_mask=batch["attention_mask"])
        found = teacher.loss(out, batch["labels"])
        logits = {m: m(batch["input_ids"], attention_mask=batch["attention_mask"]).logits for m in (dense, student)}
    distances, losses = [], []
    for row, count in ((0, 3), (1, 2)):
        for at in range(count):
            then, now = (logits[m][row, at].double() for m in (dense, student))
            p, q = (torch.softmax(x / temperature, 0) for x in (then, now))
            distances.append(temperature**2 * float((p * (p / q).log()).sum()))
            losses.append(-float(torch.log_softmax(now, 0)[batch["labels"][row, at + 1]]))
    assert found.item() == pytest.approx(0.25 * sum(distances) / 5 + 0.75 * sum(losses) / 5, rel=1e-5)
    assert teacher.loss(out, batch["labels"], 10).item() == pytest.approx(found.item() / 2)


def test_finetune_without_a_teacher_lowers_the_loss_of_the_text_and_trains_everything() -> None:
    model = llama(tied=True)
    before = weights(model)
    report = recover(Finetune(**OPTIONS), model, None, RepeatedTokens())
    assert report["loss"][-1] < 0.5 * report["loss"][0]
    assert report["steps"] == 12
    assert not any(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_accumulation_with_a_teacher_equals_one_large_batch() -> None:
    results = []
    for micro_batch in (1, 4):
        model = damaged(llama())
        recover(Distill(**OPTIONS | {"micro_batch": micro_batch, "steps": 3}), model, llama(), UnequalRows())
        results.append(weights(model))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    runs = []
    for seed in (1, 1, 2):
        torch.rand(3)  # whatever the process has drawn before
        model = damaged(llama())
        recover(Distill(**OPTIONS | {"steps": 3, "seed": seed}), model, llama())
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_half_precision_models_learn_in_float32_and_stay_half() -> None:
    dense = llama().half()
    model = damaged(dense)
    before = divergence(copy.deepcopy(model).float(), copy.deepcopy(dense).float())
    recover(Distill(**OPTIONS), model, dense)
    assert {t.dtype for m in (model, dense) for t in m.state_dict().values()} == {torch.float16}
    assert divergence(model.float(), dense.float()) < 0.7 * before


def test_bfloat16_arithmetic_reaches_the_teacher_too() -> None:
    dense = llama()
    model = damaged(dense)
    before = divergence(model, dense)
    recover(Distill(**OPTIONS, dtype="bfloat16"), model, dense)
    assert divergence(model, dense) < 0.7 * before


@functools.cache
def traced() -> Traced:
    return trace_causal_lm(llama())


def pipeline_on(text: str) -> State:
    return run_passes(decoder_state(llama(), traced(), calibration=TEXT, recovery=TEXT), text)


RECOVER = "{steps=2,batch=2,micro_batch=2,length=12"


@pytest.mark.parametrize(
    "text",
    [
        f"magnitude{{ratio=0.5}},distill{RECOVER}}}",
        f"drop{{layers=1,samples=4,length=12}},magnitude{{ratio=0.5}},lora{RECOVER},teacher=0.5}}",
    ],
)
def test_the_pipeline_keeps_the_model_as_it_was_before_anything_was_removed(text: str) -> None:
    state = pipeline_on(text)
    assert state.before.model is not None
    whole = llama().state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.before.model.state_dict().items())
    assert state.before.model.state_dict().keys() == whole.keys()


def test_one_copy_serves_all_that_look_back_and_none_is_made_for_nobody() -> None:
    state = pipeline_on(f"magnitude{{ratio=0.5}},compensate{{samples=8,length=12}},distill{RECOVER}}}")
    assert state.before.model is state.before.same_layers
    state = pipeline_on(f"magnitude{{ratio=0.5}},lora{RECOVER}}}")
    assert state.before.model is state.before.same_layers is None


def test_blocks_alone_come_nearer_to_the_dense_ones() -> None:
    dense = llama()
    one, other = damaged(dense), damaged(dense)
    options = OPTIONS | {"steps": 1, "lr": 0.005}
    recover(Distill(**options), one, dense)
    report = recover(Distill(**options, blocks=60), other, dense)
    assert len(report["blocks"]) == 2
    assert all(last < 0.5 * first for first, last in report["blocks"])
    assert divergence(other, dense) < 0.7 * divergence(one, dense)
    assert all(parameter.grad is None for parameter in other.parameters())


def test_padding_is_no_part_of_what_a_block_learns() -> None:
    dense, model = llama(), damaged(llama())
    rows = [{"input_ids": ids, "labels": ids} for ids in ([1, 2, 3, 4, 5, 6], [7, 8])]

    def first_loss(data: list[Any]) -> float:
        student, teacher = BlockRunner(copy.deepcopy(model)), BlockRunner(dense)
        return distil_blocks(student, teacher, data, steps=1, lr=0.01, batch=len(data), seed=0)[0][0]

    together, alone = first_loss(rows), [first_loss([row]) for row in rows]
    with torch.no_grad():
        hidden = [dense(torch.tensor([row["input_ids"]]), output_hidden_states=True) for row in rows]
    sizes = [float(out.hidden_states[1].square().sum()) for out in hidden]
    assert together == pytest.approx(sum(a * s for a, s in zip(alone, sizes, strict=True)) / sum(sizes), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"drop{{layers=1,samples=4,length=12}},distill{RECOVER},blocks=2}}", "1 of 2 layers are left"),
        (f"magnitude{{channels=true,ratio=0.25}},distill{RECOVER},blocks=2}}", "12 of 16 residual channels are left"),
    ],
)
def test_blocks_that_do_not_compare_are_an_error(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=f"cannot train block by block: {message}") as caught:
        pipeline_on(text)
    assert "leave the option blocks out" in caught.value.hint


def test_a_block_whose_loss_is_not_finite_is_an_error() -> None:
    model = damaged(llama())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(FxpruneError, match="block 1: the loss is nan at step 1"):
        recover(Distill(**OPTIONS, blocks=2), model, llama())


def test_a_teacher_that_was_never_pruned_from_is_an_error() -> None:
    with pytest.raises(RequestError, match="distill needs the dense model as teacher, but no pass before it") as caught:
        recover(Distill(**OPTIONS), llama(), None)
    assert "taylor,distill" in caught.value.hint


@pytest.mark.parametrize("step", [Distill(), Finetune()])
def test_no_data_is_an_error(step: Recovery) -> None:
    with pytest.raises(RequestError, match=f"{step.name} has no text to train on") as caught:
        step.run(state_of(None, llama()))
    assert "--data" in caught.value.hint


def test_a_module_that_is_no_causal_lm_is_an_error() -> None:
    with pytest.raises(RequestError, match="distill cannot train a Linear"):
        recover(Distill(), torch.nn.Linear(2, 2), None)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    dense = llama()
    model = damaged(dense)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(FxpruneError, match="recovery training failed: loss is nan at step 1") as caught:
        recover(Distill(**OPTIONS), model, dense)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Distill(teacher=1.5), "distill: teacher=1.5 is outside [0, 1]"),
        (Distill(temperature=0.0), "distill: temperature=0 is not above 0"),
        (Lora(temperature=2.0), "lora: temperature=2 means nothing without a teacher"),
        (Lora(top_k=8), "lora: top_k=8 means nothing without a teacher"),
        (Distill(top_k=-1), "distill: top_k=-1 is below 0"),
        (Finetune(lr=-1.0), "finetune: lr=-1 is not above 0"),
        (Distill(batch=6), "distill: batch=6 is not a multiple of micro_batch=4"),
        (Distill(teacher=0.0), "distill: teacher=0 does not use the dense model"),
        (Distill(blocks=-1), "distill: blocks=-1 is below 0"),
        (Finetune(steps=-1), "finetune: steps=-1 is below 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error(step: Recovery, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        step.check()
    assert caught.value.message == message
    assert caught.value.hint
