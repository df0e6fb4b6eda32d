"""What a recovery pass does: teacher, room and arithmetic for the training, and afterwards the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ...ir.errors import RequestError
from ...runtime.model.kinds import is_pretrained
from ...runtime.place.choices import AUTO
from ...runtime.place.devices import CPU
from ...runtime.scratch import ScratchDirectory
from ...runtime.tensors import made_private
from ..data import is_inputs
from ..state import State
from .answer_loss import AnswerLoss
from .base import Recovery
from .memory import Holder, TrainingMemory, require_room, training_memory
from .recorded_teacher import RecordedTeacher
from .teacher import PresentTeacher, Teacher
from .training import Lessons, Recipe, lessons_of, preserved_randomness

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TrainingRun:
    """One run of a recovery pass.

    Attributes:
        step: the pass, with its options.
        place: where it trains.
    """

    step: Recovery
    place: Holder

    @classmethod
    def of(cls, step: Recovery, state: State) -> TrainingRun:
        """Where the model is."""
        return cls(step, Holder.of(state.subject.runner))

    def run(self, state: State) -> None:
        """Train in place, as :meth:`~.base.Recovery.run` says."""
        data = state.data.recovery
        if data is None:
            raise RequestError(f"{self.step.name} has no text to train on", "give --data FILE")
        model = state.subject.model
        if is_inputs(data):
            self.step.check_inputs(data)
        elif not is_pretrained(model):
            raise RequestError(
                f"{self.step.name} cannot train a {type(model).__name__} on text",
                "give data by the names of its arguments, or a transformers causal language model",
            )
        self.step.require(state, model)
        if self.step.teacher and state.before.model is None:
            raise RequestError(
                f"{self.step.name} needs the dense model as teacher, but no pass before it removed anything",
                f"write it after a pruning pass in one pipeline: taylor,{self.step.name}; or give teacher=0",
            )
        if self.step.checkpointing == "on" and not _can_compute_again(model):
            raise RequestError(
                f"{self.step.name}: checkpointing=on, but a {type(model).__name__} cannot do without activations",
                "leave it out, or give fewer examples in one forward pass (micro_batch)",
            )
        lessons = lessons_of(data, self.step.length, self.step.train_on)
        with ExitStack() as stack:
            stack.enter_context(preserved_randomness())
            stack.enter_context(state.ranks.through("training"))
            teacher = self._teacher(state, lessons, stack)
            self._bring(state, model, stack)
            if self.widens():
                stack.enter_context(_full_precision(model))
            stack.enter_context(_restored(model))
            recipe = self._recipe(model)
            state.ledger.report[self.step.name] = self.step.recover(state, model, lessons, recipe, teacher)
            if isinstance(teacher, RecordedTeacher) and teacher.top_k:
                state.ledger.report[self.step.name]["teacher_mass"] = teacher.mass

    def _teacher(self, state: State, lessons: Lessons, stack: ExitStack) -> Teacher | AnswerLoss | None:
        """What gives the loss; None for the loss of a language model on its text.

        On text it is the dense model where that is in memory and all of its predictions are wanted, else what it
        predicts.
        """
        runner = state.before.runner("model") if self.step.teacher else None
        if runner is None:
            return None if lessons.text else AnswerLoss(0.0, self.step.temperature, None, state.subject.outputs)
        dense, residence = runner.model, runner.residence
        if residence is not None and not lessons.text:
            stack.enter_context(runner.whole_in_memory())
        elif residence is None and self.widens(frozen=True):
            stack.enter_context(_full_precision(dense))
        if not lessons.text:
            return AnswerLoss(self.step.teacher, self.step.temperature, dense.eval(), state.subject.outputs)
        if residence is None and not self.step.top_k:
            return PresentTeacher(dense, self.step.teacher, self.step.temperature)
        scratch = None if state.host.scratch is None else state.host.scratch()
        folder = stack.enter_context(ScratchDirectory("fxprune-teacher-", beside=scratch))
        teacher = RecordedTeacher(self.step.teacher, self.step.temperature, self.step.top_k, folder)
        teacher.keep_predictions(
            runner,
            lessons.examples,
            batch=min(self.step.micro_batch, self.step.batch),
            device=self.place.device,
            bfloat16=self.bfloat16(),
        )
        return teacher

    def _bring(self, state: State, model: nn.Module, stack: ExitStack) -> None:
        """Put all weights into memory, those that are written to in memory of their own, until the stack is closed."""
        residence = state.subject.residence
        if residence is not None:
            require_room(self.step.name, self.memory(model), self.place)
            written = {id(parameter) for parameter in self.step.written(model)}
            names = [name for name, parameter in model.named_parameters() if id(parameter) in written]
        stack.enter_context(state.subject.runner.whole_in_memory())
        if residence is not None:
            stack.push(lambda kind, *_: residence.keep(names) if kind is None else None)
        if residence is not None or state.before.model is not None or state.before.same_layers is not None:
            made_private((*self.step.written(model), *model.buffers()))

    def bfloat16(self) -> bool:
        """Whether to use bfloat16 autocast."""
        if self.step.dtype == AUTO:
            return self.place.device != CPU and self.place.dtype == torch.bfloat16
        return self.step.dtype == "bfloat16"

    def widens(self, *, frozen: bool | None = None) -> bool:
        """Whether half-precision weights are float32 while they are in use; small updates would be lost in them."""
        if self.step.dtype == AUTO:
            return not self.bfloat16() or not (self.step.keeps_weights if frozen is None else frozen)
        return self.step.dtype == "float32"

    def memory(self, model: nn.Module) -> TrainingMemory:
        """What training needs.

        Args:
            model: on any device, also the meta device.
        """
        return training_memory(
            model,
            dtype=torch.float32 if self.widens() and self.place.dtype in HALF else self.place.dtype,
            trained=self.step.trained(model),
            batch=min(self.step.micro_batch, self.step.batch),
            length=self.step.length,
            checkpointing=self.step.checkpointing != "off" and _can_compute_again(model),
        )

    def _recipe(self, model: nn.Module) -> Recipe:
        """The options as a training recipe for a model in memory."""
        return Recipe(
            epochs=self.step.epochs,
            steps=self.step.steps,
            lr=self.step.first_rate if isinstance(self.step.lr, str) else self.step.lr,
            sweep=self.step.lr == AUTO,
            warmup=self.step.warmup,
            batch=self.step.batch,
            micro_batch=self.step.micro_batch,
            bfloat16=self.bfloat16(),
            checkpointing=self._checkpointing(model),
            seed=self.step.seed,
            validation=self.step.validation,
        )

    def _checkpointing(self, model: nn.Module) -> bool:
        if self.step.checkpointing != AUTO or not _can_compute_again(model):
            return self.step.checkpointing == "on"
        memory = self.memory(model)
        return not self.place.holds(memory.usual, there=memory.weights)


def _can_compute_again(model: nn.Module) -> bool:
    """Whether activations can be computed again for the backward."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


@contextmanager
def _full_precision(*models: nn.Module) -> Iterator[None]:
    """Inside, half-precision tensors are float32, because small updates would be lost in half precision."""
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    half = [(tensor, tensor.dtype) for tensor in tensors if tensor.dtype in HALF]
    for tensor, _ in half:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in half:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Afterwards, restore ``requires_grad``, set eval mode, and remove the attributes that PEFT added."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in trainable:  # by object: where a run is broken off, the names may still be PEFT's
            parameter.requires_grad_(flag)
            parameter.grad = None
        model.eval()
        vars(model).pop("peft_config", None)
