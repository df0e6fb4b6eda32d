"""Refits a linear map so that its outputs on calibration data stay close to given ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...ir import FxpruneError


@dataclass
class Moments:
    """Second moments of a linear map's inputs, and of its inputs with the target outputs, summed in float64.

    Attributes:
        inputs: sum of ``x x^T``, ``[k, k]``.
        targets: sum of ``x y^T``, ``[k, n]``.
        count: number of tokens.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device | str = "cpu") -> Moments:
        """Moments of no tokens."""
        zeros = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        return cls(zeros, torch.zeros(inputs, outputs, dtype=torch.float64, device=device))

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add tokens: inputs ``[T, k]`` and target outputs ``[T, n]``."""
        x, y = x.double(), y.double()
        self.inputs.addmm_(x.T, x)
        self.targets.addmm_(x.T, y)
        self.count += len(x)


def refit(moments: Moments, weight: torch.Tensor, damping: float) -> torch.Tensor:
    """The weight whose outputs are closest to the target; damping keeps it close to the present weight.

    Minimises ``|X W^T - Y|^2 + lambda |W - W0|^2`` with ``lambda = damping * mean(diag(X^T X))``. Without damping this
    is the least-squares optimum, with strong damping ``W0``. The closed form is ``(X^T X + lambda I) W^T = X^T Y +
    lambda W0^T`` (OBS with all kept columns at once). The ridge term pulls towards the pruned weights instead of zero,
    so that too little calibration text does no harm.

    Args:
        moments: moments of the pruned model's inputs and the dense model's outputs.
        weight: the present weight ``W0``, ``[n, k]``.
        damping: 0 or more.

    Returns:
        float64 ``[n, k]``.

    Raises:
        FxpruneError: for moments that are not finite, or singular without damping; with the number of tokens if too
            few.
    """
    return _solved(moments, weight, damping, _factor(moments, damping))


def _solved(moments: Moments, weight: torch.Tensor, damping: float, factor: torch.Tensor) -> torch.Tensor:
    ridge = damping * float(moments.inputs.diagonal().mean())
    return torch.cholesky_solve(moments.targets + ridge * weight.double().T, factor).T


def _factor(moments: Moments, damping: float) -> torch.Tensor:
    """Cholesky factor of ``X^T X + lambda I``."""
    size = len(moments.inputs)
    if not bool(moments.inputs.isfinite().all() and moments.targets.isfinite().all()):
        raise FxpruneError(
            "the second moments of a layer's inputs are not finite", "run in float32; check the --calib text"
        )
    ridge = damping * float(moments.inputs.diagonal().mean())
    system = moments.inputs + ridge * torch.eye(size, dtype=torch.float64, device=moments.inputs.device)
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed) or not math.isfinite(float(factor.sum())):
        short = f"; {moments.count} tokens for {size} unknowns" if moments.count < size else ""
        raise FxpruneError(
            f"the second moments of a layer's inputs are singular{short}",
            "give more calibration text, or damping above 0, which keeps undetermined weights at their old values",
        )
    return factor


@dataclass
class ObsSolver:
    """One linear map from which inputs are removed; the remaining weights compensate for each removal (OBS).

    With ``H`` the damped second moments of its inputs, removing the inputs ``S`` of weights ``W`` at the optimum costs
    ``1/2 tr(W_S ([H^-1]_SS)^-1 W_S^T)``, after ``W -= W_S ([H^-1]_SS)^-1 [H^-1]_S,:`` and
    ``H^-1 -= [H^-1]_:,S ([H^-1]_SS)^-1 [H^-1]_S,:`` (Hassibi and Stork 1992; blockwise as in OSSCAR, ZipLM, SlimGPT).

    Attributes:
        weight: float64 ``[n, k]``.
        inverse: ``H^-1``, float64 ``[k, k]``.
        columns: unit -> int64 columns that go with it.
        pull: damping penalty of each column when its weights are 0, ``[k]``. It is not an error of the outputs, so it
            is subtracted from the costs (a column whose input is always 0 costs nothing).
        felt: the weights times the square root of a metric of the outputs, ``[n, k]``, for the costs; None when all
            outputs count equally. It is updated with the weights, which is cheaper than to multiply again.
    """

    weight: torch.Tensor
    inverse: torch.Tensor
    columns: list[torch.Tensor]
    pull: torch.Tensor
    felt: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        moments: Moments,
        weight: torch.Tensor,
        damping: float,
        columns: list[torch.Tensor],
        metric: torch.Tensor | None = None,
    ) -> ObsSolver:
        """Start at the optimum of :func:`refit`, with all inputs present.

        Args:
            moments, weight, damping: as in :func:`refit`.
            columns: unit -> int64 columns that go with it.
            metric: square root of the metric that weighs output errors, float64 ``[n, n]``; None for the identity.

        Raises:
            FxpruneError: as in :func:`refit`.
        """
        factor = _factor(moments, damping)
        best = _solved(moments, weight, damping, factor)
        ridge = damping * float(moments.inputs.diagonal().mean())
        before = weight.double() if metric is None else metric @ weight.double()
        pull = 0.5 * ridge * before.square().sum(0)
        felt = None if metric is None else metric @ best
        return cls(best, torch.cholesky_inverse(factor), columns, pull, felt)

    def costs(self) -> torch.Tensor:
        """Cost of removing each unit alone, float64 ``[units]``; 0 for a unit without columns."""
        costs = torch.zeros(len(self.columns), dtype=torch.float64, device=self.weight.device)
        weight = self.weight if self.felt is None else self.felt
        sizes = {len(columns) for columns in self.columns if len(columns)}
        for size in sizes:
            units = [unit for unit, columns in enumerate(self.columns) if len(columns) == size]
            at = torch.stack([self.columns[unit] for unit in units])
            blocks = self.inverse[at[:, :, None], at[:, None, :]]
            rows = weight[:, at].permute(1, 2, 0)
            found = 0.5 * (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
            costs[torch.tensor(units, device=costs.device)] = found - self.pull[at].sum(1)
        return costs

    def remove(self, units: list[int]) -> None:
        """Remove units together; their weights become 0."""
        gone = torch.cat([self.columns[unit] for unit in units])
        if not len(gone):
            return
        block = self.inverse[gone[:, None], gone]
        solved = torch.linalg.solve(block, self.inverse[gone])
        for weight in (self.weight, self.felt):
            if weight is not None:
                weight.sub_(weight[:, gone] @ solved)
                weight[:, gone] = 0
        self.inverse -= self.inverse[:, gone] @ solved
        self.inverse[gone], self.inverse[:, gone] = 0, 0
        for unit in units:
            self.columns[unit] = self.columns[unit][:0]
