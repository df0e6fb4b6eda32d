"""How often a model takes the token that a smaller one drafted, from their two distributions."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ...ir import FxpruneError
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.turns import Around, Feed
from ..model.forward import logits_of


class Acceptance:
    """The share of drafted tokens that speculative sampling keeps: the mean over all positions of
    ``sum over tokens of min(p, q)``, with ``p`` the next-token distribution of the model and ``q`` that of the draft
    (Leviathan et al., arXiv 2211.17192, corollary 3.6). It is 1 where the two agree.

    Args:
        runner: of the model, as it is now.
        tokens: int64 ``[N, L]``; ``p`` is kept on the CPU for all of them, float32 ``[N, L, V]``.
    """

    def __init__(self, runner: BlockRunner, tokens: torch.Tensor) -> None:
        self._windows = tokens.split(1)
        self._dense: list[torch.Tensor] = runner.run([_probabilities(window) for window in self._windows])

    def of(self, runner: BlockRunner, around: Around | None = None) -> float:
        """That of a draft, from 0 to 1.

        Args:
            runner: of the draft.
            around: a context for each of its forward passes.

        Raises:
            FxpruneError: it is not finite.
        """
        pairs = zip(self._windows, self._dense, strict=True)
        shares = runner.run([_overlap(window, dense) for window, dense in pairs], around)
        value = sum(shares) / len(shares)
        if not math.isfinite(value):
            raise FxpruneError(f"the acceptance is {value}", "check the weights; run in float32")
        return value


def _probabilities(window: torch.Tensor) -> Feed:
    def feed(model: nn.Module) -> torch.Tensor:
        return functional.softmax(logits_of(model, window).float(), dim=-1).cpu()

    return feed


def _overlap(window: torch.Tensor, dense: torch.Tensor) -> Feed:
    def feed(model: nn.Module) -> float:
        draft = functional.softmax(logits_of(model, window).float(), dim=-1)
        return float(torch.minimum(draft, dense.to(draft.device)).sum(-1).mean())

    return feed
