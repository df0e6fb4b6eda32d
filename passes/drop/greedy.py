"""Which of many parts go, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...runtime.reporting import counted
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.turns import Around
from ..model.measure import perplexity
from .acceptance import Acceptance
from .drop import ACCEPTANCE

Chosen = tuple[list[int], list[float]]
"""Indices of the parts that go, in the order in which they were chosen, and a score of each choice or part."""


def one_after_the_other(parts: int, count: int, cost: Callable[[Sequence[int]], float]) -> Chosen:
    """Each time the part without which, and without those before it, the cost is lowest; the first where several are.

    Args:
        parts: how many there are.
        count: how many go, fewer than there are.
        cost: without the parts of these indices.

    Returns:
        The indices, and the cost that was reached with each.
    """
    gone: list[int] = []
    costs: list[float] = []
    for _ in counted(range(count), "removals"):
        values = {index: cost([*gone, index]) for index in range(parts) if index not in gone}
        best = min(values, key=lambda index: (values[index], index))
        gone.append(best)
        costs.append(values[best])
    return gone, costs


@dataclass(frozen=True)
class Gauge:
    """Reads how good a model is without some of its parts.

    Attributes:
        read: of what runs the model, with a context around each of its forward passes.
        sign: 1 where less is better, -1 where more is.
    """

    read: Callable[[BlockRunner, Around | None], float]
    sign: int


def gauge_of(by: str, runner: BlockRunner, tokens: torch.Tensor) -> Gauge | None:
    """The gauge for removing one part after the other; None for a criterion that reads all parts at once.

    Args:
        by: ``perplexity`` on the tokens; ``acceptance`` of the tokens that the model without the parts drafts.
        runner: of the model, as it is now.
        tokens: int64 ``[N, L]``.
    """
    if by == ACCEPTANCE:
        return Gauge(Acceptance(runner, tokens).of, -1)
    if by == "perplexity":
        return Gauge(lambda without, around: perplexity(without, tokens, around=around).value, 1)
    return None
