"""Taylor contributions: the estimated change of the loss, to first or second order, if weights were zero.

The formulas are those of LLM-Pruner (arXiv 2305.11627, section 3.2, as in its code). ``W`` is a weight, ``g`` its
gradient of the mean cross-entropy over the batch, ``g_j`` that of sample ``j`` alone, ``G2 = 1/N * sum_j g_j**2``::

    vector     |sum of W * g|                        over the other dimensions
    element1   sum of |W * g|
    second     sum of |W * G2 * W|
    element2   sum of |W * g - 1/2 * W * G2 * W|
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ...ir.errors import FxpruneError, RequestError
from .backward import Scoring, as_it_was
from .per_sample import mixed, squared
from .position_scores import Slab, as_contributions, wanted_parameters
from .units import Contributions, Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


def taylor(model: Module, tokens: Tensor, wanted: Wanted, variant: str) -> Contributions:
    """Taylor contributions of every dimension in ``wanted``, from one pass over the calibration tokens.

    Other parameters get no gradient. One gradient is in memory at a time, two for ``element2`` and for shared
    parameters; docs/scoring.md has the figures and the exceptions. Afterwards gradients, flags and modes of the model
    are as they were.

    Args:
        model: called as ``model(input_ids=..., labels=..., use_cache=False)``; its output must have ``loss``.
        tokens: int64 ``[N, L]``, N samples without padding.
        wanted: what to score.
        variant: ``vector``, ``element1``, ``second`` or ``element2``.

    Raises:
        RequestError: for an unknown variant, tokens of another shape or dtype, or a ``wanted`` that does not fit.
        FxpruneError: for a loss or gradient that is not finite, or a loss that depends on none of the parameters.
    """
    compute = TAYLOR_TERMS.get(variant)
    if compute is None:
        raise RequestError(f"unknown Taylor variant {variant!r}", f"use one of {', '.join(TAYLOR_TERMS)}")
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise RequestError(
            f"calibration tokens of shape {list(tokens.shape)} and type {tokens.dtype}",
            "give int64 token ids [samples, length] with length at least 2",
        )
    scoring = Scoring(model, tokens, wanted, wanted_parameters(model, wanted))
    with as_it_was(model), torch.enable_grad():
        model.requires_grad_(False)
        contributions = compute(scoring)
        if not scoring.reached:
            raise FxpruneError(
                f"the loss depends on none of the {len(scoring.parameters)} parameters to score",
                "choose groups that the model's forward pass uses",
            )
    return scoring.unreached_are_zero(contributions)


def _first_order(scoring: Scoring, absolute: bool) -> Contributions:
    """``W * g``: absolute values of the elements before the sum if ``absolute``, else of the sums."""
    contributions: Contributions = {}
    everything = slice(None)

    def receive(name: str, gradient: Tensor) -> None:
        weight = scoring.parameters[name].detach()

        def saliency(slab: Slab) -> Tensor:
            part = weight[slab].double() * gradient[slab]
            return part.abs_() if absolute else part

        sums = scoring.reduce(name, saliency, everything)
        contributions.update(as_contributions(name, {dim: total.abs() for dim, total in sums.items()}))

    scoring.backward(everything, list(scoring.parameters), receive)
    return contributions


TAYLOR_TERMS: dict[str, Callable[[Scoring], Contributions]] = {
    "vector": lambda scoring: _first_order(scoring, absolute=False),
    "element1": lambda scoring: _first_order(scoring, absolute=True),
    "second": squared,
    "element2": mixed,
}
