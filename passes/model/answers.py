"""What models of any kind say of a batch, and how far two of them are apart.

A model that returns ``logits`` says a distribution for every row of them; anything else that it returns is a vector for
every row. Rows that are padding do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from ...ir.errors import FxpruneError
from ...runtime.model.training_rows import IGNORED
from ..data import Inputs

LOGITS = "logits"
OWN_LOSS = "loss"
FROM_OTHERS = {"pooler_output": "last_hidden_state"}
"""Outputs that follow from others -> from which."""


@dataclass(frozen=True)
class AnswerPart:
    """One output of a model.

    Attributes:
        rows: ``[N, V]``.
        distribution: whether each row holds the logits of a distribution.
    """

    rows: Tensor
    distribution: bool

    def cpu(self) -> AnswerPart:
        """The same on the CPU, without a graph."""
        return AnswerPart(self.rows.detach().cpu(), self.distribution)


ModelAnswer = list[AnswerPart]
"""All outputs of a model that count."""


def answer_of(output: Any, batch: Inputs, keys: Sequence[str] = ()) -> ModelAnswer:
    """What a model says of a batch.

    Args:
        output: what its forward returned.
        batch: what it was called with; masks and labels tell which rows count.
        keys: of the outputs that count; when empty, ``logits``, or all where there are none.

    Raises:
        FxpruneError: it returns no tensor of numbers.
    """
    found = [
        AnswerPart(_counted(value, name, batch), name == LOGITS and _classes(value) > 1)
        for name, value in _outputs(output, keys)
    ]
    if not found:
        raise FxpruneError("the model returns no numbers to compare", "give a model whose forward returns tensors")
    return found


def distance(now: ModelAnswer, then: ModelAnswer, temperature: float = 1.0) -> Tensor:
    """How far an answer is from an earlier one: a scalar, 0 for the same; the mean over rows, summed over outputs.

    For distributions ``t^2 KL(then || now)`` at temperature ``t``, in nats (Hinton et al., arXiv 1503.02531); for
    vectors the squared difference, divided by the mean square of ``then``.
    """
    total = torch.zeros((), device=now[0].rows.device)
    for new, old in zip(now, then, strict=True):
        rows = old.rows.to(new.rows.device, new.rows.dtype)
        if new.distribution:
            log_now, log_then = (functional.log_softmax(values / temperature, dim=-1) for values in (new.rows, rows))
            divergence = functional.kl_div(log_now, log_then, reduction="sum", log_target=True) / max(1, len(rows))
            total = total + temperature**2 * divergence
        elif rows.numel():
            total = total + (new.rows - rows).square().mean() / rows.square().mean().clamp_min(_tiny(rows))
    return total


def own_loss(answer: ModelAnswer, generator: torch.Generator) -> tuple[Tensor, int]:
    """A loss without labels: the answer against a draw from the distribution that it describes itself.

    For logits, the cross-entropy of classes drawn from their softmax; its expected squared gradient is the Fisher
    information, the curvature of the divergence from the model as it is now. For vectors, their product with normal
    numbers, divided by the root of their mean square: the same for the squared difference.

    Returns:
        The loss, summed over rows, and the number of rows.
    """
    total, count = torch.zeros((), device=answer[0].rows.device), 0
    for part in answer:
        rows = part.rows
        if part.distribution:
            chances = rows.detach().double().softmax(-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].to(rows.device)
            total = total + functional.cross_entropy(rows, drawn, reduction="sum")
        else:
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            size = rows.detach().square().mean().clamp_min(_tiny(rows)).sqrt()
            total = total + (noise * rows).sum() / size / rows.shape[-1] ** 0.5
        count = max(count, len(rows))
    return total, count


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny


def _outputs(output: Any, keys: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Name and value of the outputs that count; the name is "" where they have none."""
    if isinstance(output, Mapping):
        there = {
            name: value
            for name, value in output.items()
            if value is not None and name != OWN_LOSS and not (name in FROM_OTHERS and FROM_OTHERS[name] in output)
        }
        chosen = [name for name in keys if name in there] or ([LOGITS] if LOGITS in there else list(there))
        pairs = [(name, there[name]) for name in chosen]
    else:
        pairs = [("", output)]
    return [
        (name, leaf)
        for name, value in pairs
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0
    ]


def _classes(logits: Tensor) -> int:
    return logits.shape[1] if logits.dim() == 4 else logits.shape[-1]


def _counted(value: Tensor, name: str, batch: Inputs) -> Tensor:
    """The rows ``[N, V]`` of an output that are no padding, at least float32."""
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    if value.dim() == 4 and name == LOGITS:  # a class for every place of an image
        value = value.movedim(1, -1)
    if value.dim() < 2:
        return value.reshape(-1, 1)
    mask = mask_of(value, batch)
    return value.flatten(0, -2) if mask is None else value[mask.to(value.device)]


def mask_of(value: Tensor, batch: Inputs) -> Tensor | None:
    """Which rows of a value ``[B, L, V]`` count, bool ``[B, L]``; None for all.

    Args:
        value: made by a model from the batch.
        batch: with a mask or labels of its shape, if there is padding.
    """
    places = value.shape[:2]
    labels = batch.get("labels")
    if value.dim() != 3:
        return None
    for mask in (
        labels != IGNORED if isinstance(labels, Tensor) and not labels.is_floating_point() else None,
        batch.get("decoder_attention_mask"),
        batch.get("attention_mask"),
    ):
        if isinstance(mask, Tensor) and mask.shape == places:
            return mask.bool()
    return None
