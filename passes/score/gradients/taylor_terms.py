"""Taylor contributions: the estimated change of the loss, to first or second order, if weights were zero.

The formulas are those of LLM-Pruner (arXiv 2305.11627, section 3.2, as in its code). ``W`` is a weight, ``g`` its
gradient of the mean cross-entropy over the batch, ``g_j`` that of sample ``j`` alone, ``G2 = 1/N * sum_j g_j**2``::

    vector     |sum of W * g|                        over the other dimensions
    element1   sum of |W * g|
    second     sum of |W * G2 * W|
    element2   sum of |W * g - 1/2 * W * G2 * W|
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ....ir.errors import FxpruneError, RequestError
from ....runtime.model.keywords import caching
from ....runtime.ranks import ALONE, Ranks
from ....runtime.streaming.block_runner import BlockRunner
from ....runtime.streaming.reverse import Loss
from ..choices import TAYLOR_TERMS
from ..position_scores import wanted_parameters
from ..units import Contributions, Wanted
from .taylor_gradients import NOT_FINITE, TaylorReceiver

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

PER_SAMPLE = ("second", "element2")
"""The variants with squares of the gradient of each sample."""

LOGITS_AT_ONCE = 1 << 26
"""For variants of the mean gradient: the most bytes that the float32 logits of windows in one forward pass take."""


def taylor(runner: BlockRunner, tokens: Tensor, wanted: Wanted, variant: str, ranks: Ranks = ALONE) -> Contributions:
    """Taylor contributions of every dimension in ``wanted``, from one pass over the calibration tokens.

    Other parameters get no gradient. The weights and the graph of one block are in memory at a time; docs/scoring.md
    has the figures. Afterwards gradients, flags and modes of the model are as they were.

    Args:
        runner: of a model that is called as ``model(input_ids=..., labels=...)``, with ``use_cache=False`` if it takes
            that, and returns something with a ``loss``.
        tokens: int64 ``[N, L]``, N samples without padding.
        wanted: what to score.
        variant: ``vector``, ``element1``, ``second`` or ``element2``.
        ranks: who shares the samples.

    Raises:
        RequestError: for an unknown variant, tokens of another shape or dtype, or a ``wanted`` that does not fit.
        FxpruneError: for a loss or gradient that is not finite, or a loss that depends on none of the parameters.
    """
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise RequestError(
            f"calibration tokens of shape {list(tokens.shape)} and type {tokens.dtype}",
            "give int64 token ids [samples, length] with length at least 2",
        )
    size = (
        1 if variant in PER_SAMPLE else min(_windows_at_once(runner.model, tokens), max(1, len(tokens) // ranks.count))
    )
    parts = list(tokens.split(size))
    even = len(parts) == 1 or len(parts[-1]) == size
    if not even:  # the mean of the losses is the loss of all windows only when all parts are equally large
        size = next(n for n in range(size, 0, -1) if len(tokens) % n == 0)
        parts = list(tokens.split(size))

    def named(part: int | None) -> str:
        if part is None or len(parts) == 1:
            return f"the calibration batch of {len(tokens)}"
        return f"calibration sample {part * size} of {len(tokens)}"

    losses = [_loss_on(part, named(number)) for number, part in enumerate(parts)]
    return contributions_of(runner, losses, wanted, variant, named, ranks=ranks)


def contributions_of(
    runner: BlockRunner,
    losses: Sequence[Loss],
    wanted: Wanted,
    variant: str,
    named: Callable[[int | None], str],
    *,
    ranks: Ranks = ALONE,
) -> Contributions:
    """Contributions from losses, each of which counts as one sample.

    Args:
        runner: of the model.
        losses: at least one.
        wanted: what to score.
        variant: one of :data:`TAYLOR_TERMS`.
        named: number of a loss -> what it is computed on, for messages; None for all of them.
        ranks: who shares the losses.

    Raises:
        RequestError, FxpruneError: as :func:`taylor`.
    """
    if variant not in TAYLOR_TERMS:
        raise RequestError(f"unknown Taylor variant {variant!r}", f"use one of {', '.join(TAYLOR_TERMS)}")
    parameters = wanted_parameters(runner.model, wanted, stored=runner.residence is not None)
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    mine = ranks.share(list(enumerate(losses)), "calibration samples")
    receiver = TaylorReceiver(
        variant, wanted, len(losses), lambda batch: named(None if batch is None else mine[batch][0]), ranks
    )
    runner.gradients([loss for _, loss in mine], list(parameters), receiver)
    receiver.join()
    if not receiver.reached:
        raise FxpruneError(
            f"the loss depends on none of the {len(parameters)} parameters to score",
            "choose groups that the model's forward pass uses",
        )
    return receiver.all(shapes)


def _windows_at_once(model: Module, tokens: Tensor) -> int:
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config.get_text_config(), "vocab_size", 1) if hasattr(config, "get_text_config") else 1
    each = 4 * tokens.shape[1] * vocabulary
    return max(1, min(len(tokens), LOGITS_AT_ONCE // each))


def _loss_on(windows: Tensor, name: str) -> Loss:
    def run(model: Module) -> Tensor:
        batch = windows.to(next(model.parameters()).device)
        loss = getattr(model(input_ids=batch, labels=batch, **caching(model, False)), "loss", None)
        if loss is None:
            raise FxpruneError(f"{type(model).__name__} returned no loss for labels", "give a causal language model")
        if not bool(loss.isfinite()):
            raise FxpruneError(f"the loss on {name} is {loss.item()}", NOT_FINITE)
        return loss

    return run
