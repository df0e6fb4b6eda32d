"""Data, recipe and result of recovery training; :mod:`trainer` runs it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from ...ir.errors import FxpruneError
from ...runtime.model.training_rows import IGNORED, Example, ExampleRows
from ...runtime.place.choices import AUTO
from ..data import Calibration, is_inputs


@runtime_checkable
class RowCorpus(Protocol):
    """Text with separate rows, each a training example, instead of one running text."""

    def examples(self, length: int, train_on: str = AUTO) -> ExampleRows:
        """``input_ids`` and ``labels`` per example, at most ``length`` tokens each.

        Args:
            length: the most tokens.
            train_on: which of them count: ``all``, those of ``answers``, or as the format of the rows says.
        """


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: epochs over the examples; used when ``steps`` is 0.
        steps: optimizer steps; with 0, ``epochs`` decides.
        lr: peak learning rate, falling linearly to 0.
        warmup: steps of linear warm-up, limited to a tenth of all steps.
        batch: examples in an optimizer step, over all devices.
        micro_batch: examples in one forward pass on one device; the rest is gradient accumulation.
        bfloat16: whether to use bfloat16 autocast; weights keep their dtype.
        checkpointing: whether activations are computed again for the backward.
        seed: random seed of dropout and of the order of the examples.
        validation: examples that are held out, to keep the weights with the smallest loss on them; 0 trains on all.
        measured: how often the loss on them is measured during the training, besides before it.
        sweep: whether ``lr`` is only where the search for a rate begins.
    """

    epochs: int
    steps: int
    lr: float
    warmup: int
    batch: int
    micro_batch: int
    bfloat16: bool
    checkpointing: bool
    seed: int
    validation: int = 0
    measured: int = 8
    sweep: bool = False

    def total(self, examples: int) -> int:
        """Optimizer steps on so many examples."""
        return self.steps or self.epochs * math.ceil(examples / self.batch)


@dataclass
class Validation:
    """The loss on examples that are held out of a training.

    Attributes:
        examples: their number.
        losses: optimizer steps -> the loss after them; for text in nats per predicted token.
    """

    examples: int
    losses: dict[int, float] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """After how many steps the loss was smallest, the first time; 0 where nothing is better than no training."""
        finite = {step: loss for step, loss in self.losses.items() if math.isfinite(loss)}
        return min(finite, key=lambda step: (finite[step], step), default=0)

    def to_json(self) -> dict[str, Any]:
        return {"examples": self.examples, "losses": [list(pair) for pair in self.losses.items()], "kept": self.kept}

    @property
    def remarks(self) -> list[str]:
        """What to say where the last weights are not the best."""
        last, kept = max(self.losses, default=0), self.kept
        if kept == last:
            return []
        found = (
            f"{self.losses[kept]:.4f} against {self.losses[last]:.4f} after step {last}, on {self.examples} held-out"
        )
        advice = "; the training is left out, since it made that worse: lower lr" if kept == 0 else ""
        return [f"the weights after step {kept} are kept: their loss is {found} examples{advice}"]


@dataclass
class Training:
    """Result of a training run.

    Attributes:
        losses: mean loss of every optimizer step; for text in nats per predicted token.
        tokens: number of tokens, without padding; 0 for inputs that are no text.
        seconds: wall time.
        validation: the loss on held-out examples, where there are some.
        rates: of ``lr=auto``: each rate that was tried, and the loss on held-out examples after it.
    """

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    validation: Validation | None = None
    rates: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Lessons:
    """What recovery trains on.

    Attributes:
        examples: one after the other; those of a data set of inputs are read when they are needed.
        join: puts some of them together to a batch.
        text: whether they are token ids, of each of which a causal language model predicts the next.
        divided: whether several can be put together.
        remarks: on what was left out.
    """

    examples: Sequence[Any]
    join: Callable[[Sequence[Any]], Mapping[str, Any]]
    text: bool = True
    divided: bool = True
    remarks: Sequence[str] = ()


def lessons_of(data: Calibration, length: int, train_on: str = AUTO) -> Lessons:
    """Training examples of data: the samples of inputs; the rows of a text if it has rows, otherwise its windows.

    Args:
        data: what is trained on.
        length: the most tokens of an example of text.
        train_on: which tokens of a row count, as in :meth:`RowCorpus.examples`.

    Raises:
        RequestError: when there is too little for one example.
    """
    if is_inputs(data):
        return Lessons(data.rows(length), data.join, text=False, divided=data.divided)
    if isinstance(data, RowCorpus):
        examples = data.examples(length, train_on)
        return Lessons(examples, pad, remarks=examples.left_out(length))
    return Lessons([{"input_ids": ids, "labels": list(ids)} for ids in data.windows(length).tolist()], pad)


def pad(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """One batch ``[B, longest]``, padded on the right with token 0, which mask and labels exclude.

    The first label is excluded too. No token predicts it, but Trainer averages over labels and would count it for
    models whose loss it does not know to be shifted.
    """
    longest = max(len(example["input_ids"]) for example in examples)

    def stack(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    return {
        "input_ids": stack([example["input_ids"] for example in examples], 0),
        "labels": stack([[IGNORED, *example["labels"][1:]] for example in examples], IGNORED),
        "attention_mask": stack([[1] * len(example["input_ids"]) for example in examples], 0),
    }


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Afterwards restore the random state of the process, so that our seeds do not affect other code."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def reported(training: Training, lessons: Lessons) -> dict[str, Any]:
    """The part of the report that all recovery passes have."""
    seen = {"tokens": training.tokens} if lessons.text else {"samples": len(lessons.examples)}
    held = training.validation
    said = [*lessons.remarks, *(held.remarks if held else [])]
    more = ({"validation": held.to_json()} if held else {}) | ({"remarks": said} if said else {})
    if training.rates:
        # Infinity is no JSON.
        more["rates"] = [[rate, loss if math.isfinite(loss) else None] for rate, loss in training.rates.items()]
    return {"loss": training.losses, "steps": len(training.losses), **seen, "seconds": training.seconds, **more}


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
