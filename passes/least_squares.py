"""Refitting a linear map so that its outputs on calibration data stay what they were."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..ir import FxpruneError


@dataclass
class Moments:
    """Second moments of a map's inputs and of its inputs with the wanted outputs, accumulated in float64.

    Attributes:
        inputs: sum of ``x x^T``, ``[k, k]``.
        targets: sum of ``x y^T``, ``[k, n]``.
        count: tokens seen.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device | str = "cpu") -> Moments:
        """Nothing seen yet."""
        zeros = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        return cls(zeros, torch.zeros(inputs, outputs, dtype=torch.float64, device=device))

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add tokens: inputs ``[T, k]`` and wanted outputs ``[T, n]``."""
        x, y = x.double(), y.double()
        self.inputs.addmm_(x.T, x)
        self.targets.addmm_(x.T, y)
        self.count += len(x)


def refit(moments: Moments, weight: torch.Tensor, damping: float) -> torch.Tensor:
    """The map that is closest to the wanted outputs, held near the one there is where the data say little.

    Minimises ``|X W^T - Y|^2 + lambda |W - W0|^2`` with ``lambda = damping * mean(diag(X^T X))``: with no damping the
    least-squares optimum; with much of it ``W0``. Solved in closed form,
    ``(X^T X + lambda I) W^T = X^T Y + lambda W0^T`` (OBS with all kept columns at once; the ridge pulls towards the
    pruned weights instead of zero, so that too little calibration does no harm).

    Args:
        moments: of the inputs as the pruned model has them, and of the outputs of the dense one.
        weight: ``W0``, ``[n, k]``.
        damping: 0 or more.

    Returns:
        float64 ``[n, k]``.

    Raises:
        FxpruneError: for moments that are not finite, or singular without damping (by how many tokens they fall short).
    """
    size = len(moments.inputs)
    if not bool(moments.inputs.isfinite().all() and moments.targets.isfinite().all()):
        raise FxpruneError("the second moments of a layer's inputs are not finite", "run in float32; check the text")
    ridge = damping * float(moments.inputs.diagonal().mean())
    system = moments.inputs + ridge * torch.eye(size, dtype=torch.float64, device=moments.inputs.device)
    wanted = moments.targets + ridge * weight.double().T
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed) or not math.isfinite(float(factor.sum())):
        short = (
            f"; {moments.count} tokens for {size} unknowns, {size - moments.count} too few"
            if moments.count < size
            else ""
        )
        raise FxpruneError(
            f"the second moments of a layer's inputs are singular{short}",
            "give more calibration text, or damping above 0, which holds what the text leaves open at its old value",
        )
    return torch.cholesky_solve(wanted, factor).T
