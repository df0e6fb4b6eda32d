"""The dense model as a teacher: a loss from the distance between two models' predictions on the same text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...runtime.model.keywords import caching
from ...runtime.model.training_rows import IGNORED


class Teacher(ABC):
    """A recovery loss: the distance from a teacher's next-token distributions, mixed with the loss on the text.

    ``share * t^2 KL(teacher || student) + (1 - share) * CE``, both distributions at temperature ``t`` (Hinton et al.,
    arXiv 1503.02531, section 2), in nats, averaged over the predicted tokens.

    Args:
        share: weight of the distance in the loss, in (0, 1].
        temperature: softmax temperature, above 0.
    """

    def __init__(self, share: float, temperature: float) -> None:
        self.share, self.temperature = share, temperature

    @abstractmethod
    def answer(self, inputs: Mapping[str, Tensor]) -> None:
        """Get the teacher's predictions for a batch: ``input_ids``, ``labels``, ``attention_mask``, ``[B, L]``."""

    @abstractmethod
    def distance(self, student: Tensor, counted: Tensor) -> Tensor:
        """``KL(teacher || student)`` for the batch of the last :meth:`answer`, summed over tokens.

        Args:
            student: logits divided by the temperature, ``[N, V]``, of the tokens that count.
            counted: bool ``[B, L - 1]``: which they are.
        """

    def to(self, device: torch.device) -> None:
        """Move what it needs in memory: here nothing."""
        del device

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss for the batch of the last :meth:`answer`, in the form of a transformers Trainer loss.

        Args:
            outputs: outputs of the student, with logits ``[B, L, V]``.
            labels: ``[B, L]``, not shifted; labels equal to IGNORED do not count.
            num_items_in_batch: divisor of the sums: tokens in the optimizer step; tokens in this batch when None.
        """
        targets = labels[:, 1:].to(outputs.logits.device)
        counted = targets != IGNORED
        student = outputs.logits[:, :-1][counted].float()
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch
        # The squared temperature keeps the size of the gradients constant.
        loss = self.share * (self.temperature**2 * self.distance(student / self.temperature, counted))
        if self.share < 1:
            loss = loss + (1 - self.share) * functional.cross_entropy(student, targets[counted], reduction="sum")
        return loss / count


class PresentTeacher(Teacher):
    """A teacher in memory, which answers while the student learns.

    Args:
        model: the teacher; it is in eval mode during a forward pass.
        share, temperature: as for every teacher.
    """

    def __init__(self, model: nn.Module, share: float, temperature: float) -> None:
        super().__init__(share, temperature)
        self.model = model
        self._answers: Tensor | None = None

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)

    def answer(self, inputs: Mapping[str, Tensor]) -> None:
        """Compute the predictions."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            self._answers = self.model(**given, **caching(self.model, False)).logits.detach()

    def distance(self, student: Tensor, counted: Tensor) -> Tensor:
        """From all of the distribution."""
        assert self._answers is not None, "the trainer asks the teacher first"
        answers = self._answers[:, :-1][counted].float()
        now, then = (functional.log_softmax(logits, dim=-1) for logits in (student, answers / self.temperature))
        return functional.kl_div(now, then, reduction="sum", log_target=True)
