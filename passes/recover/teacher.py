"""The dense model as a teacher: a loss from the distance between two models' predictions on the same text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100
"""The label that transformers' causal language model loss ignores."""


class Teacher:
    """A recovery loss: the distance from a teacher's next-token distributions, mixed with the loss on the text.

    ``share * t^2 KL(teacher || student) + (1 - share) * CE``, both distributions at temperature ``t`` (Hinton et al.,
    arXiv 1503.02531, section 2), in nats, averaged over the predicted tokens.

    Args:
        model: the teacher; it is in eval mode during a forward pass.
        share: weight of the distance in the loss, in (0, 1].
        temperature: softmax temperature, above 0.
    """

    def __init__(self, model: nn.Module, share: float, temperature: float) -> None:
        self.model, self.share, self.temperature = model, share, temperature
        self._answers: Tensor | None = None

    def answer(self, inputs: Mapping[str, Any]) -> None:
        """Compute the teacher's predictions for a batch: ``input_ids`` and ``attention_mask``, ``[B, L]``."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            self._answers = self.model(**given, use_cache=False).logits.detach()

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss for the batch of the last :meth:`answer`, in the form of a transformers Trainer loss.

        Args:
            outputs: outputs of the student, with logits ``[B, L, V]``.
            labels: ``[B, L]``, not shifted; labels equal to IGNORED do not count.
            num_items_in_batch: divisor of the sums: tokens in the optimizer step; tokens in this batch when None.
        """
        assert self._answers is not None, "the trainer asks the teacher first"
        targets = labels[:, 1:].to(outputs.logits.device)
        counted = targets != IGNORED
        student, answers = (logits[:, :-1][counted].float() for logits in (outputs.logits, self._answers))
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch
        loss = self.share * self._distance(student, answers)
        if self.share < 1:
            loss = loss + (1 - self.share) * functional.cross_entropy(student, targets[counted], reduction="sum")
        return loss / count

    def _distance(self, student: Tensor, answers: Tensor) -> Tensor:
        """The distance, summed over tokens; the squared temperature keeps the size of the gradients constant."""
        now, then = (functional.log_softmax(logits / self.temperature, dim=-1) for logits in (student, answers))
        return self.temperature**2 * functional.kl_div(now, then, reduction="sum", log_target=True)
