"""The base of all recovery passes: options, text, teacher, and restoring the model's state afterwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..ir.errors import FxpruneError, RequestError
from .base import Pass, State, option
from .teacher import Teacher
from .training import Example, Recipe, Training, examples_of, preserved_randomness

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Recovery(Pass):
    """Trains a pruned transformers causal language model on text.

    ``state.report[name]`` gets the loss of every step, the numbers of steps and tokens, seconds, and what the pass
    adds.
    """

    kind: ClassVar[str] = "recover"

    epochs: int = option(2, "epochs over the data; used when steps is 0")
    lr: float = option(1e-4, "peak learning rate, falling linearly to 0")
    batch: int = option(64, "examples per optimizer step")
    micro_batch: int = option(4, "examples per forward pass and device; a batch of several uses gradient accumulation")
    length: int = option(256, "maximum number of tokens in an example")
    steps: int = option(0, "optimizer steps; with 0, epochs decides")
    warmup: int = option(100, "steps of linear warm-up, limited to a tenth of all steps")
    seed: int = option(42, "random seed for data order, dropout and adapter weights")
    dtype: str = option(
        "float32",
        "arithmetic: float32 (also for half-precision weights), or bfloat16 autocast",
        ("float32", "bfloat16"),
    )
    teacher: float = option(
        0.0, "weight of the distance to the dense model's predictions in the loss; the rest is the loss on the text"
    )
    temperature: float = option(1.0, "softmax temperature of the comparison with the dense model's predictions")

    at_least: ClassVar[Mapping[str, int]] = {
        "epochs": 1, "batch": 1, "micro_batch": 1, "length": 2, "steps": 0, "warmup": 0,
    }  # fmt: skip
    usual_lr: ClassVar[str] = "1e-4"

    @property
    def needs_dense(self) -> bool:
        """True with a teacher."""
        return self.teacher > 0

    def check(self) -> None:
        """Check the option values."""
        for name, low in self.at_least.items():
            if getattr(self, name) < low:
                raise self._refusal(name, f"is below {low}", f"give {name} of {low} or more")
        if not 0 <= self.seed < 2**32:
            raise self._refusal("seed", "is outside [0, 2^32)", "give a seed in this range")
        if not 0 < self.lr < float("inf"):
            raise self._refusal("lr", "is not a positive number", f"a usual value is {self.usual_lr}")
        if self.dtype not in ("float32", "bfloat16"):
            raise self._refusal("dtype", "is not supported", "use float32 or bfloat16")
        if not 0 <= self.teacher <= 1:
            raise self._refusal("teacher", "is outside [0, 1]", "0 uses the text only, 1 the dense model only")
        if not 0 < self.temperature < float("inf"):
            raise self._refusal("temperature", "is not a positive number", "1 compares the predictions unchanged")
        if self.temperature != 1 and not self.teacher:
            raise self._refusal("temperature", "has no effect without a teacher", "give teacher=1 too")
        if self.batch % min(self.micro_batch, self.batch):
            raise RequestError(
                f"{self.name}: batch={self.batch} is not a multiple of micro_batch={self.micro_batch}",
                "change one of them",
            )

    def _refusal(self, name: str, why: str, hint: str) -> RequestError:
        return RequestError(f"{self.name}: {name}={getattr(self, name)} {why}", hint)

    def run(self, state: State) -> None:
        """Train; ``state.model`` stays the same object with the same parameters, in eval mode.

        Raises:
            RequestError: for no text or too little; for a model that is not a transformers causal language model, or
                that this pass cannot train; for a teacher without a dense model.
            FxpruneError: for a loss that is not finite.
        """
        if state.data is None:
            raise RequestError(f"{self.name} has no text to train on", "give --data FILE")
        model = state.model
        if not isinstance(model, PreTrainedModel):
            raise RequestError(
                f"{self.name} cannot train a {type(model).__name__}", "give a transformers causal language model"
            )
        self.require(state, model)
        if self.teacher and state.dense is None:
            raise RequestError(
                f"{self.name} needs the dense model as teacher, but no pass before it removed anything",
                f"write it after a pruning pass in one pipeline: taylor,{self.name}; or give teacher=0",
            )
        examples = examples_of(state.data, self.length)
        dense = state.dense if self.teacher else None
        widened = [held for held in (model, dense) if held is not None] if self.dtype == "float32" else []
        with preserved_randomness(), _full_precision(*widened), _restored(model):
            teacher = None if dense is None else Teacher(dense, self.teacher, self.temperature)
            state.report[self.name] = self.recover(state, model, examples, teacher)

    def require(self, state: State, model: PreTrainedModel) -> None:
        """Check that this pass can train the model.

        Raises:
            RequestError: with what is missing.
        """

    @abstractmethod
    def recover(
        self, state: State, model: PreTrainedModel, examples: list[Example], teacher: Teacher | None
    ) -> dict[str, Any]:
        """Train ``model`` in place; returns what to report."""

    @property
    def recipe(self) -> Recipe:
        """The options as a training recipe."""
        return Recipe(
            epochs=self.epochs,
            steps=self.steps,
            lr=self.lr,
            warmup=self.warmup,
            batch=self.batch,
            micro_batch=self.micro_batch,
            bfloat16=self.dtype == "bfloat16",
            seed=self.seed,
        )


def reported(training: Training) -> dict[str, Any]:
    """The part of the report that all recovery passes have."""
    return {
        "loss": training.losses,
        "steps": len(training.losses),
        "tokens": training.tokens,
        "seconds": training.seconds,
    }


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
def _restored(model: PreTrainedModel) -> Iterator[None]:
    """Afterwards, restore ``requires_grad``, set eval mode, and remove the attributes that PEFT added."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
            parameter.grad = None
        model.eval()
        vars(model).pop("peft_config", None)
