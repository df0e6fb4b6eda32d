"""Recovery training with the transformers Trainer: in memory, without output, repeatable; stops at a non-finite loss.

Imported only when there is something to train, because importing Trainer takes half a second.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from ...ir.errors import FxpruneError, RequestError
from ...runtime.reporting import Advance, counting, not_counted
from ...runtime.scratch import ScratchDirectory
from .answer_loss import AnswerLoss
from .held_out import BestWeights, divided
from .kept_training import KeptTraining, TrainingState
from .rates import chosen, swept
from .sharding import is_sharded, whole_again
from .teacher import Teacher
from .training import Lessons, Recipe, Training, preserved_randomness

CHECKPOINTING = {
    "gradient_checkpointing", "_gradient_checkpointing_func", "_require_grads_hooks", "_require_grads_hook",
}  # fmt: skip
"""What transformers keeps in modules whose activations are computed again."""


def train(
    model: torch.nn.Module,
    lessons: Lessons,
    recipe: Recipe,
    teacher: Teacher | AnswerLoss | None = None,
    kept: KeptTraining | None = None,
) -> Training:
    """Train the parameters of ``model`` that require a gradient, with AdamW and the causal language model loss or a
    teacher's.

    Writes to a temporary directory only and prints nothing. Afterwards the devices of model and teacher,
    ``config.use_cache`` and the random state of the process are restored; dtypes never change.

    Args:
        model: what is trained.
        lessons, recipe: on what, and how.
        teacher: gives the loss; None for a causal language model's own.
        kept: keeps how far the training got, and where an earlier one got from which this one goes on.

    Raises:
        RequestError: when ``batch`` is not a multiple of the examples in one forward pass on all devices.
        FxpruneError: when a loss or gradient is not finite, with the step.
    """
    state = None if kept is None else kept.found()
    rates: dict[float, float] = {}
    if recipe.sweep:
        rates = swept(partial(train, teacher=teacher), model, lessons, recipe) if state is None else dict(state.rates)
        recipe = dataclasses.replace(recipe, lr=chosen(rates), sweep=False)
    lessons, held = divided(lessons, recipe)
    at_once = min(recipe.micro_batch, recipe.batch)
    best = BestWeights(held, lessons, at_once, recipe.measured, state) if held else None
    log = _Log(kept, state, best, rates)
    home = next(model.parameters()).device
    with ExitStack() as stack:
        scratch = str(stack.enter_context(ScratchDirectory("fxprune-training-")))
        stack.enter_context(preserved_randomness())
        stack.enter_context(_cache_setting(model))
        stack.enter_context(_current(home))
        if recipe.checkpointing:
            stack.enter_context(_checkpointed(model))
        arguments = _arguments(recipe, len(lessons.examples), scratch, home, text=lessons.text)
        kind: Any = _Answering if isinstance(teacher, AnswerLoss) else _Taught
        given = {"model": model, "args": arguments, "train_dataset": lessons.examples, "data_collator": lessons.join}
        trainer: Trainer = kind(teacher, state, **given, callbacks=[log] if best is None else [best, log])
        if best is not None:
            best.trainer = trainer
        _require_way_back(trainer)
        try:
            with whole_again(model), counting("steps") as log.advance:
                trainer.train(None if state is None else _folder_of(state, scratch))
        finally:
            model.to(home)
            if teacher is not None:
                teacher.to(home)
    return log.training(trainer)


def _folder_of(state: TrainingState, scratch: str) -> str:
    """What the Trainer reads itself of a state to go on from."""
    (Path(scratch) / TRAINER_STATE_NAME).write_text(json.dumps(state.trainer), encoding="utf-8")
    return scratch


def _arguments(recipe: Recipe, examples: int, scratch: str, home: torch.device, *, text: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=min(recipe.micro_batch, recipe.batch),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        learning_rate=recipe.lr,
        seed=recipe.seed,
        bf16=recipe.bfloat16,
        use_cpu=home.type == "cpu",
        dataloader_pin_memory=home.type == "cuda",
        include_num_input_tokens_seen="non_padding" if text else "no",
        label_names=["labels"],
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # this process computes where the model is, and nowhere else
    together = arguments.train_batch_size * arguments.world_size
    if recipe.batch % together:
        raise RequestError(
            f"batch={recipe.batch} is not a multiple of the {together} examples in one forward pass on all devices",
            "change batch or micro_batch (examples per device)",
        )
    arguments.gradient_accumulation_steps = recipe.batch // together
    arguments.warmup_steps = min(recipe.warmup, recipe.total(examples) // 10)
    return arguments


def _require_way_back(trainer: Trainer) -> None:
    """Refuse ways to share out a model after which it cannot be made whole again.

    Raises:
        RequestError: accelerate is told to use DeepSpeed, or the first version of FSDP.
    """
    hint = "run accelerate config again: choose FSDP with fsdp_version: 2, or no sharding"
    if trainer.is_deepspeed_enabled:
        raise RequestError("accelerate is set to DeepSpeed, and fxprune cannot take a model back from it", hint)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if trainer.is_fsdp_enabled and plugin is not None and plugin.fsdp_version != 2:
        raise RequestError(
            f"accelerate is set to FSDP version {plugin.fsdp_version}, and fxprune takes a model back from 2 only", hint
        )


@contextmanager
def _current(home: torch.device) -> Iterator[None]:
    """Inside, this is the device that Trainer takes, of several of its kind."""
    with nullcontext() if home.index is None else torch.accelerator.device_index(home.index):
        yield


@contextmanager
def _checkpointed(model: torch.nn.Module) -> Iterator[None]:
    """Inside, blocks keep their inputs alone for the backward, and run again in it, with the same random numbers."""
    plain = model if isinstance(model, PreTrainedModel) else next(
        part for part in model.modules() if isinstance(part, PreTrainedModel)
    )  # fmt: skip
    before = [(module, dict(vars(module))) for module in plain.modules()]
    plain.activation_checkpointing_enable({"use_reentrant": False})
    plain.disable_input_require_grads()  # which only the reentrant kind needs
    try:
        yield
    finally:
        plain.activation_checkpointing_disable()
        for module, attributes in before:
            for name in CHECKPOINTING & vars(module).keys() - attributes.keys():
                delattr(module, name)
            vars(module).update({name: attributes[name] for name in CHECKPOINTING & attributes.keys()})


@contextmanager
def _cache_setting(model: torch.nn.Module) -> Iterator[None]:
    """Restore ``config.use_cache`` afterwards: Trainer turns it off, even where there is none, and it is saved with the
    model."""
    config: Any = getattr(model, "config", None)
    known, before = hasattr(config, "use_cache"), getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if known:
            config.use_cache = before
        elif config is not None:
            vars(config).pop("use_cache", None)


class _Resumed(Trainer):
    """A silent Trainer that goes on from the state of another, if there is one."""

    def __init__(self, begun: TrainingState | None, **given: Any) -> None:
        super().__init__(**given)
        self.remove_callback(PrinterCallback)  # it prints every log entry on stdout
        self._begun = begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del resume_from_checkpoint
        assert self._begun is not None, "called only to go on"
        self._begun.put_weights(self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._begun is not None:
            self._begun.put_moments(self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._begun is not None:
            self._begun.put_generators(self.args.process_index)


class _Taught(_Resumed):
    """On text: with the teacher's loss instead of the model's own, if there is a teacher."""

    def __init__(self, teacher: Teacher | None, begun: TrainingState | None, **given: Any) -> None:
        super().__init__(begun, compute_loss_func=None if teacher is None else teacher.loss, **given)
        self._teacher = teacher
        if teacher is not None:
            teacher.to(self.args.device)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self._teacher is not None:
            with self.accelerator.autocast():
                self._teacher.answer(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


class _Answering(_Resumed):
    """On inputs of any kind: with a loss of answers, averaged over the batches of a step."""

    def __init__(self, loss: AnswerLoss, begun: TrainingState | None, **given: Any) -> None:
        super().__init__(begun, **given)
        self.model_accepts_loss_kwargs = False  # the Trainer then averages over the batches of a step
        self._loss = loss
        loss.to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        del return_outputs, num_items_in_batch
        if self._loss.without_noise and not _computes_again(model):
            model.eval()
        return self._loss.of(model, inputs)


def _computes_again(model: torch.nn.Module) -> bool:
    """Whether activations are computed again for the backward, which transformers does in training mode only."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


class _Log(TrainerCallback):
    """Records the loss of every step; stops at a loss that is not finite; keeps the state of the training.

    Args:
        kept: where that is kept.
        begun: the state from which the training goes on.
        best, rates: what else belongs to the state.
    """

    def __init__(
        self,
        kept: KeptTraining | None,
        begun: TrainingState | None,
        best: BestWeights | None,
        rates: dict[float, float],
    ) -> None:
        self.losses: list[float] = [] if begun is None else list(begun.losses)
        self.advance: Advance = not_counted
        self._kept, self._best, self._rates = kept, best, rates
        self._start = time.perf_counter() - (0.0 if begun is None else begun.seconds)

    @property
    def seconds(self) -> float:
        """Wall time so far, with that of the training that this one goes on from."""
        return time.perf_counter() - self._start

    def training(self, trainer: Trainer) -> Training:
        """What a trainer that is done with it did."""
        tokens, held = int(trainer.state.num_input_tokens_seen), self._best and self._best.validation
        return Training(self.losses, tokens, self.seconds, held, self._rates)

    def on_log(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **event: Any) -> None:
        """Called when a step is complete, but for what the next one changes."""
        logs = event.get("logs") or {}
        if "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            value = logs.get(name, 0.0)
            if not math.isfinite(value):
                raise FxpruneError(
                    f"recovery training failed: {name} is {value} at step {state.global_step}",
                    "lower lr, raise warmup, or look for NaN in the weights; nothing was merged",
                )
        self.losses.append(float(logs["loss"]))
        self.advance(len(self.losses), total=state.max_steps, loss=self.losses[-1])
        # Shards would have to be gathered for it.
        if self._kept is not None and not is_sharded(event["model"]) and self._kept.due:
            parts = event["model"], event["optimizer"], event["lr_scheduler"]
            weights, validation = ({}, []) if self._best is None else self._best.state
            self._kept.keep(
                TrainingState.of(
                    *parts,
                    trainer=dataclasses.asdict(state),
                    losses=self.losses,
                    seconds=self.seconds,
                    ranks=self._kept.ranks,
                    best=weights,
                    validation=validation,
                    rates=self._rates,
                )
            )
