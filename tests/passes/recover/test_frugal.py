"""Recovery in less memory: activations that are computed again, weights in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxprune.ir.errors import RequestError
from fxprune.passes.recover.base import Recovery
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.memory import Holder
from fxprune.passes.recover.training_run import TrainingRun

from ...decoders import gpt2, llama
from ...states import state_of
from .test_distill import OPTIONS, TEXT
from .test_lora import weights

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def forwards_of_a_block(step: Recovery, model: Any) -> int:
    """How often the first block runs while the model is trained, its gradients included."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += torch.is_grad_enabled()

    block = model.transformer.h[0] if hasattr(model, "transformer") else model.model.layers[0]
    part = block.mlp.register_forward_pre_hook(counted)  # checkpointing calls the block's forward, not the block
    try:
        step.run(state_of(None, model, recovery=TEXT))
    finally:
        part.remove()
    return count


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("kind", [Lora, Finetune])
def test_activations_that_are_computed_again_change_nothing(kind: type[Recovery], build: Any) -> None:
    results, left = [], []
    for checkpointing, runs in (("off", 6), ("on", 12), ("auto", 6)):
        model = build()
        step = kind(**OPTIONS | {"steps": 3, "checkpointing": checkpointing})
        assert forwards_of_a_block(step, model) == runs
        results.append(weights(model))
        assert not model.is_activation_checkpointing
        left.append([set(vars(module)) for module in model.modules()])
        assert not model.get_input_embeddings()._forward_hooks
    assert left[0] == left[1] == left[2], "no attributes stay behind"
    for other in results[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


@pytest.mark.parametrize(("free", "runs"), [(None, 6), (10**12, 6), (10_000, 12)])
def test_they_are_computed_again_where_they_do_not_fit(
    free: int | None, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holder, "free", free)
    assert forwards_of_a_block(Lora(**OPTIONS | {"steps": 3}), llama()) == runs


def test_a_model_that_needs_its_activations_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(RequestError, match="lora: checkpointing=on, but a LlamaForCausalLM cannot"):
        Lora(**OPTIONS, checkpointing="on").run(state_of(None, model, recovery=TEXT))
    Lora(**OPTIONS | {"steps": 1}).run(state_of(None, model, recovery=TEXT))


def test_memory_that_is_allowed_counts_all_and_memory_that_is_free_what_is_to_come() -> None:
    place = Holder(CPU, torch.float32, max_memory=1000)
    assert place.holds(1000)
    assert not place.holds(1001, there=1001)
    assert Holder(CPU, torch.float32).holds(10**15, there=10**15)
    assert not Holder(CPU, torch.float32).holds(10**15)


@pytest.mark.parametrize(
    ("step", "place", "bfloat16", "widened"),
    [
        (Lora(), Holder(CPU, torch.bfloat16), False, True),
        (Lora(), Holder(CUDA, torch.bfloat16), True, False),
        (Lora(), Holder(CUDA, torch.float32), False, True),
        (Lora(), Holder(CUDA, torch.float16), False, True),
        (Finetune(), Holder(CUDA, torch.bfloat16), True, True),
        (Distill(), Holder(CPU, torch.float32), False, True),
        (Lora(dtype="float32"), Holder(CUDA, torch.bfloat16), False, True),
        (Lora(dtype="bfloat16"), Holder(CPU, torch.bfloat16), True, False),
        (Finetune(dtype="bfloat16"), Holder(CPU, torch.bfloat16), True, False),
    ],
)
def test_the_arithmetic_is_that_of_the_place(step: Recovery, place: Holder, bfloat16: bool, widened: bool) -> None:
    run = TrainingRun(step, place)
    assert run.bfloat16() == bfloat16
    assert run.widens() == widened
    assert run.widens(frozen=True) == (not bfloat16), "a teacher is not trained"


@pytest.mark.parametrize(("kind", "while_training"), [(Lora, torch.bfloat16), (Finetune, torch.float32)])
def test_a_bfloat16_model_on_an_accelerator(
    kind: type[Recovery], while_training: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU plays the accelerator."""
    monkeypatch.setattr(TrainingRun, "bfloat16", lambda *_: True)
    model, seen = llama().bfloat16(), set()
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.register_forward_pre_hook(lambda *_: seen.add(weight.dtype))
    state = state_of(None, model, recovery=TEXT)
    step = kind(**OPTIONS)
    before = weights(model)
    step.run(state)
    losses = state.ledger.report[step.name]["loss"]
    assert losses[-1] < losses[0]
    assert while_training in seen
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert not torch.equal(weight, before["model.layers.0.mlp.up_proj.weight"])
