"""The loss of recovery on inputs of any kind: the distance from the dense model's answers, and the model's own loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ir.errors import FxpruneError
from ...runtime.model.keywords import caching
from ..data import Inputs
from ..model.answers import OWN_LOSS, answer_of, distance
from ..model.inputs import moved


class AnswerLoss:
    """``share * distance + (1 - share) * own``, for one batch.

    The distance is that of :func:`~fxprune.passes.model.answers.distance` from the dense model's answers on the same
    batch: the divergence of its predictions where it returns ``logits``, else the squared difference of its outputs
    (for an encoder its last hidden states). The own loss is what the model returns for ``labels``.

    Args:
        share: weight of the distance, in [0, 1].
        temperature: softmax temperature of predictions.
        dense: the dense model; None when ``share`` is 0.
        keys: outputs that count; see :func:`~fxprune.passes.model.answers.answer_of`.
    """

    def __init__(self, share: float, temperature: float, dense: nn.Module | None, keys: Sequence[str] = ()) -> None:
        self.share, self.temperature, self.dense, self.keys = share, temperature, dense, keys

    @property
    def without_noise(self) -> bool:
        """Whether the answers alone matter, so that the model gives them without dropout, as the dense one does."""
        return self.share == 1

    def to(self, device: torch.device) -> None:
        """Move the dense model."""
        if self.dense is not None:
            self.dense.to(device)

    def of(self, model: nn.Module, batch: Inputs) -> Tensor:
        """The loss of a model on a batch.

        Raises:
            FxpruneError: it returns no loss of its own, and that counts.
        """
        output = model(**moved(batch, model), **caching(model, False))
        loss: Tensor | None = output.get(OWN_LOSS) if hasattr(output, "get") else None
        if self.share < 1 and loss is None:
            raise FxpruneError(
                f"{type(model).__name__} returned no loss for labels", "give teacher=1, which needs no labels"
            )
        if self.dense is None:
            assert loss is not None, "a share of 0"
            return loss
        with torch.no_grad():
            wanted = answer_of(self.dense(**moved(batch, self.dense), **caching(self.dense, False)), batch, self.keys)
        found = self.share * distance(answer_of(output, batch, self.keys), wanted, self.temperature)
        return found if loss is None or self.share == 1 else found + (1 - self.share) * loss
