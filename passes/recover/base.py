"""The base of all recovery passes: options, text, teacher, and restoring the model's state afterwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ...ir.errors import FxpruneError, RequestError
from ...ir.options import option
from ...runtime.model.kinds import is_pretrained
from ...runtime.place.devices import CPU
from ...runtime.place.placement import AUTO
from ...runtime.scratch import ScratchDirectory
from ...runtime.tensors import made_private
from ..base import Pass, PassKind
from ..data import InputSet, is_inputs
from ..pipeline import print_pass
from ..state import State
from .answer_loss import AnswerLoss
from .kept_training import KeptTraining
from .memory import Holder, TrainingMemory, require_room, training_memory
from .recorded_teacher import RecordedTeacher
from .teacher import PresentTeacher, Teacher
from .training import Lessons, Recipe, Training, lessons_of, preserved_randomness

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Recovery(Pass):
    """Trains what pruning left: of a causal language model of transformers on text, of any model on its inputs.

    ``state.ledger.report[name]`` receives the loss of every step, steps, tokens and seconds, and what the pass adds.

    Attributes:
        keeps_weights: whether the model's own weights stay as they are while it trains.
    """

    kind: ClassVar[PassKind] = PassKind.RECOVER
    keeps_weights: ClassVar[bool] = False

    epochs: int = option(2, "epochs over the data; used when steps is 0", at_least=1)
    lr: float = option(1e-4, "peak learning rate, falling linearly to 0", above=0, hint="usual is 1e-4")
    batch: int = option(64, "examples per optimizer step", at_least=1)
    micro_batch: int = option(
        4, "examples per forward pass and device; a batch of several uses gradient accumulation", at_least=1
    )
    length: int = option(256, "maximum number of tokens in an example", at_least=2)
    steps: int = option(0, "optimizer steps; with 0, epochs decides", replaces="epochs", at_least=0)
    warmup: int = option(100, "steps of linear warm-up, limited to a tenth of all steps", at_least=0)
    seed: int = option(42, "random seed for data order, dropout and adapter weights", at_least=0, below=2**32)
    dtype: str = option(
        AUTO,
        "arithmetic: float32 (also for half-precision weights), or bfloat16 autocast; auto: bfloat16 for a model that "
        "is bfloat16 on an accelerator, though what is trained is float32; else float32",
        (AUTO, "float32", "bfloat16"),
    )
    checkpointing: str = option(
        AUTO,
        "compute the activations of a block again when its gradients are computed, which takes less memory and a third "
        "more time, and changes no result; auto: where those of all blocks do not fit in what is free",
        (AUTO, "on", "off"),
    )
    teacher: float = option(
        0.0, "weight of the distance to the dense model's predictions in the loss; the rest is the loss on the data",
        at_least=0, at_most=1, hint="0 uses the data only, 1 the dense model only",
    )  # fmt: skip
    temperature: float = option(
        1.0, "softmax temperature of the comparison with the dense model's predictions", above=0,
        hint="1 compares the predictions unchanged",
    )  # fmt: skip
    top_k: int = option(
        0, "how many of the dense model's most probable tokens are compared, all others counting as one token; they "
        "are computed once and kept on the disk, 8 bytes each for every token of the text; 0 compares all", at_least=0,
        hint="64 is usual for a large vocabulary",
    )  # fmt: skip

    @property
    def looks_back_at(self) -> tuple[Literal["model"], ...]:
        """A teacher is the model as it was before anything was removed."""
        return ("model",) if self.teacher else ()

    def check(self) -> None:
        """Also refuse a temperature for no teacher, and a batch that is no whole number of micro-batches."""
        super().check()
        if self.temperature != 1 and not self.teacher:
            raise RequestError(
                f"{self.name}: temperature={self.temperature:g} means nothing without a teacher",
                "give teacher=1 too",
            )
        if self.top_k and not self.teacher:
            raise RequestError(f"{self.name}: top_k={self.top_k} means nothing without a teacher", "give teacher=1 too")
        if self.batch % min(self.micro_batch, self.batch):
            raise RequestError(
                f"{self.name}: batch={self.batch} is not a multiple of micro_batch={self.micro_batch}",
                "change one of them",
            )

    def run(self, state: State) -> None:
        """Train; ``state.subject.model`` stays the same object with the same parameters, in eval mode.

        Raises:
            RequestError: no data, or too little of it; data without labels where there is no teacher; a model that
                this pass finds nothing to train in; a teacher, and no dense model to be it.
            FxpruneError: a loss that is not finite.
        """
        data = state.data.recovery
        if data is None:
            raise RequestError(f"{self.name} has no text to train on", "give --data FILE")
        model = state.subject.model
        if is_inputs(data):
            self.check_inputs(data)
        elif not is_pretrained(model):
            raise RequestError(
                f"{self.name} cannot train a {type(model).__name__} on text",
                "give data by the names of its arguments, or a transformers causal language model",
            )
        self.require(state, model)
        if self.teacher and state.before.model is None:
            raise RequestError(
                f"{self.name} needs the dense model as teacher, but no pass before it removed anything",
                f"write it after a pruning pass in one pipeline: taylor,{self.name}; or give teacher=0",
            )
        if self.checkpointing == "on" and not _can_compute_again(model):
            raise RequestError(
                f"{self.name}: checkpointing=on, but a {type(model).__name__} cannot do without activations",
                "leave it out, or give fewer examples in one forward pass (micro_batch)",
            )
        lessons = lessons_of(data, self.length)
        place = Holder.of(state.subject.runner)
        with ExitStack() as stack:
            stack.enter_context(preserved_randomness())
            stack.enter_context(state.ranks.through("training"))
            teacher = self._teacher(state, lessons, place, stack)
            self._bring(state, model, place, stack)
            if self._widens(place):
                stack.enter_context(_full_precision(model))
            stack.enter_context(_restored(model))
            recipe = self._recipe(model, place)
            state.ledger.report[self.name] = self.recover(state, model, lessons, recipe, teacher)
            if isinstance(teacher, RecordedTeacher) and teacher.top_k:
                state.ledger.report[self.name]["teacher_mass"] = teacher.mass

    def check_inputs(self, data: InputSet) -> None:
        """Refuse to train on inputs without labels, where these are needed, and what only text can be trained with.

        Raises:
            RequestError: naming what is missing.
        """
        if self.teacher < 1 and not data.labelled:
            raise RequestError(
                f"{self.name}: '{data.name}' has no labels to learn from",
                f"give data with labels; or {self.name}{{teacher=1}}, which learns from the dense model alone",
            )
        if self.top_k:
            raise RequestError(f"{self.name}: top_k is for text, and '{data.name}' is none", "leave top_k out")
        if not data.divided and (self.batch > 1 and self.micro_batch > 1):
            raise RequestError(
                f"{self.name}: batches of '{data.name}' cannot be put together", f"write {self.name}{{micro_batch=1}}"
            )

    def _teacher(self, state: State, lessons: Lessons, place: Holder, stack: ExitStack) -> Teacher | AnswerLoss | None:
        """What gives the loss; None for the loss of a language model on its text.

        On text it is the dense model where that is in memory and all of its predictions are wanted, else what it
        predicts.
        """
        runner = state.before.runner("model") if self.teacher else None
        if runner is None:
            return None if lessons.text else AnswerLoss(0.0, self.temperature, None, state.subject.outputs)
        dense, residence = runner.model, runner.residence
        if residence is not None and not lessons.text:
            stack.enter_context(runner.whole_in_memory())
        elif residence is None and self._widens(place, frozen=True):
            stack.enter_context(_full_precision(dense))
        if not lessons.text:
            return AnswerLoss(self.teacher, self.temperature, dense.eval(), state.subject.outputs)
        if residence is None and not self.top_k:
            return PresentTeacher(dense, self.teacher, self.temperature)
        scratch = None if state.host.scratch is None else state.host.scratch()
        folder = stack.enter_context(ScratchDirectory("fxprune-teacher-", beside=scratch))
        teacher = RecordedTeacher(self.teacher, self.temperature, self.top_k, folder)
        teacher.keep_predictions(
            runner,
            lessons.examples,
            batch=min(self.micro_batch, self.batch),
            device=place.device,
            bfloat16=self._bfloat16(place),
        )
        return teacher

    def _bring(self, state: State, model: nn.Module, place: Holder, stack: ExitStack) -> None:
        """Put all weights into memory, those that are written to in memory of their own, until the stack is closed."""
        residence = state.subject.residence
        if residence is not None:
            require_room(self.name, self.memory(model, place), place)
            written = {id(parameter) for parameter in self.written(model)}
            names = [name for name, parameter in model.named_parameters() if id(parameter) in written]
        stack.enter_context(state.subject.runner.whole_in_memory())
        if residence is not None:
            stack.push(lambda kind, *_: residence.keep(names) if kind is None else None)
        if residence is not None or state.before.model is not None or state.before.same_layers is not None:
            made_private((*self.written(model), *model.buffers()))

    def _bfloat16(self, place: Holder) -> bool:
        """Whether to use bfloat16 autocast."""
        if self.dtype == AUTO:
            return place.device != CPU and place.dtype == torch.bfloat16
        return self.dtype == "bfloat16"

    def _widens(self, place: Holder, *, frozen: bool | None = None) -> bool:
        """Whether half-precision weights are float32 while they are in use; small updates would be lost in them."""
        if self.dtype == AUTO:
            return not self._bfloat16(place) or not (self.keeps_weights if frozen is None else frozen)
        return self.dtype == "float32"

    def memory(self, model: nn.Module, place: Holder) -> TrainingMemory:
        """What training needs.

        Args:
            model: on any device, also the meta device.
            place: where it will run.
        """
        return training_memory(
            model,
            dtype=torch.float32 if self._widens(place) and place.dtype in HALF else place.dtype,
            trained=self.trained(model),
            batch=min(self.micro_batch, self.batch),
            length=self.length,
            checkpointing=self.checkpointing != "off" and _can_compute_again(model),
        )

    def trained(self, model: nn.Module) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in model.parameters())

    def require(self, state: State, model: nn.Module) -> None:
        """Check that this pass can train the model.

        Raises:
            RequestError: with what is missing.
        """

    def written(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters of the model that the training or what follows it writes to."""
        return list(model.parameters())

    @abstractmethod
    def recover(
        self,
        state: State,
        model: nn.Module,
        lessons: Lessons,
        recipe: Recipe,
        teacher: Teacher | AnswerLoss | None,
    ) -> dict[str, Any]:
        """Train ``model`` in place; returns what to report."""

    def kept(self, state: State) -> KeptTraining | None:
        """Where the training keeps how far it got."""
        if state.host.halfway is None:
            return None
        return KeptTraining(state.host.halfway, print_pass(self, defaults=True), state.ranks)

    def _recipe(self, model: nn.Module, place: Holder) -> Recipe:
        """The options as a training recipe for a model in memory."""
        return Recipe(
            epochs=self.epochs,
            steps=self.steps,
            lr=self.lr,
            warmup=self.warmup,
            batch=self.batch,
            micro_batch=self.micro_batch,
            bfloat16=self._bfloat16(place),
            checkpointing=self._checkpointing(model, place),
            seed=self.seed,
        )

    def _checkpointing(self, model: nn.Module, place: Holder) -> bool:
        if self.checkpointing != AUTO or not _can_compute_again(model):
            return self.checkpointing == "on"
        memory = self.memory(model, place)
        return not place.holds(memory.usual, there=memory.weights)


def reported(training: Training, lessons: Lessons) -> dict[str, Any]:
    """The part of the report that all recovery passes have."""
    seen = {"tokens": training.tokens} if lessons.text else {"samples": len(lessons.examples)}
    return {"loss": training.losses, "steps": len(training.losses), **seen, "seconds": training.seconds}


def _can_compute_again(model: nn.Module) -> bool:
    """Whether activations can be computed again for the backward."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


def require_finite(model: nn.Module, consequence: str) -> None:
    """Check that all trained parameters are finite.

    Args:
        model: after training.
        consequence: what happened to the model, for the hint.

    Raises:
        FxpruneError: with the name of the first parameter that is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise FxpruneError(
                f"recovery training failed: '{name}' is not finite after the last step",
                f"lower lr or raise warmup; {consequence}",
            )


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
