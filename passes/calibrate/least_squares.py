"""Refits a linear map so that its outputs on calibration data stay close to given ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...ir import FxpruneError
from .gram import add_gram, add_products, product_dtype
from .shrinkage import ridge_of


@dataclass
class Moments:
    """Second moments of a linear map's inputs, and of its inputs with the errors of its outputs, summed in float64.

    With errors instead of the outputs that are wanted, small corrections are not lost in large sums.

    Attributes:
        inputs: sum of ``x x^T``, ``[k, k]``, at and above the diagonal.
        errors: sum of ``e x^T``, ``[n, k]``, with ``e`` what is wanted of the outputs minus what they are; None when
            no token has an error.
        count: number of tokens.
        energy: sum of ``e^2`` of each output, ``[n]``; None like ``errors``.
    """

    inputs: Tensor
    errors: Tensor | None = None
    count: int = 0
    energy: Tensor | None = None

    @classmethod
    def empty(cls, inputs: int, device: torch.device | str = "cpu") -> Moments:
        """Moments of no tokens."""
        return cls(torch.zeros(inputs, inputs, dtype=torch.float64, device=device))

    def add(self, x: Tensor, errors: Tensor | None = None) -> None:
        """Add tokens: inputs ``[T, k]``, and errors ``[T, n]`` of the outputs, None without an error."""
        add_gram(self.inputs, x)
        if errors is not None:
            if self.errors is None or self.energy is None:
                self.errors = self.inputs.new_zeros(errors.shape[1], x.shape[1])
                self.energy = self.inputs.new_zeros(errors.shape[1])
            add_products(self.errors, errors, x)
            self.energy += errors.to(product_dtype(x.device)).square().sum(0).to(self.energy.device)
        self.count += len(x)


def refit(moments: Moments, weight: Tensor, damping: float | Literal["auto"]) -> Tensor:
    """The weight whose outputs are closest to what is wanted; damping keeps it close to the present weight.

    Minimises ``|X W^T - Y|^2 + sum_j lambda_j |W_j - W0_j|^2`` with ``lambda_j = damping * mean(diag(X^T X))``, or, for
    ``auto``, as :func:`~.shrinkage.ridge_of` says. Without damping this is the least-squares optimum, with strong
    damping ``W0``. With ``E = Y - X W0^T``, the closed form is ``(X^T X + diag(lambda)) (W - W0)^T = X^T E`` (OBS with
    all kept columns at once). The ridge term pulls towards the pruned weights instead of zero, so that too little
    calibration text does no harm.

    Args:
        moments: moments of the pruned model's inputs and of what its outputs lack to the dense model's; used up, so
            that no second matrix of their size is needed, but for ``auto``, and then for a while.
        weight: the present weight ``W0``, ``[n, k]``.
        damping: 0 or more, or ``auto``.

    Returns:
        float64 ``[n, k]``.

    Raises:
        FxpruneError: for moments that are not finite, or singular without damping; with the number of tokens if too
            few.
    """
    _check_finite(moments)
    if damping == "auto":
        if moments.errors is None or moments.energy is None:
            return weight.to(moments.inputs.device, torch.float64, copy=True)
        factor = _factor(moments, ridge_of(moments.inputs, moments.errors, moments.energy, moments.count))
    else:
        factor = _factor(moments, _mean_ridge(moments, damping))
    best = weight.to(factor.device, torch.float64, copy=True)
    change = _change(moments, factor)
    return best if change is None else best.add_(change)


def _change(moments: Moments, factor: Tensor) -> Tensor | None:
    """``W - W0`` of :func:`refit`, in the memory of the errors; None where there are none."""
    if moments.errors is None:
        return None
    right, moments.errors = moments.errors.mT, None
    # Two steps of its own, since torch.cholesky_solve copies the factor and the right side.
    torch.linalg.solve_triangular(factor, right, upper=False, out=right)
    return torch.linalg.solve_triangular(factor.mT, right, upper=True, out=right).mT


def _check_finite(moments: Moments) -> None:
    wanted = 0.0 if moments.errors is None else float(moments.errors.sum())
    if not math.isfinite(wanted) or not bool(moments.inputs.diagonal().isfinite().all()):
        raise FxpruneError(
            "the second moments of a layer's inputs are not finite", "run in float32; check the --calib text"
        )


def _mean_ridge(moments: Moments, damping: float) -> float:
    return damping * float(moments.inputs.diagonal().mean())


def _factor(moments: Moments, ridge: float | Tensor) -> Tensor:
    """Cholesky factor of ``X^T X`` with the ridge on its diagonal, in the memory of ``X^T X``."""
    # LAPACK reads the lower triangle of a matrix stored by columns, and works in place on such a one only.
    system, moments.inputs = moments.inputs.mT, moments.inputs.new_empty(0, 0)
    system.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(system, out=(system, system.new_empty(0, dtype=torch.int32)))
    if int(failed) or not math.isfinite(float(factor.sum())):
        size = len(system)
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
    ``1/2 tr(([H^-1]_SS)^-1 W_S^T M W_S)``, with ``M`` the metric of the outputs, after
    ``W -= W_S ([H^-1]_SS)^-1 [H^-1]_S,:`` and ``H^-1 -= [H^-1]_:,S ([H^-1]_SS)^-1 [H^-1]_S,:`` (Hassibi and Stork 1992;
    blockwise as in OSSCAR, ZipLM, SlimGPT).

    Columns that are there stand first in all arrays, in any order; a removal exchanges its columns with the last ones.
    So every round works on smaller matrices, in place.

    Attributes:
        weight: float64 ``[n, k]``.
        felt: the metric times the weights, ``[n, k]``; None when all outputs count equally. It is updated with the
            weights, which is cheaper than to multiply again.
        inverse: ``H^-1``, float64 ``[k, k]``.
        pull: damping penalty of each column when its weights are 0, ``[k]``. It is not an error of the outputs, so it
            is subtracted from the costs (a column whose input is always 0 costs nothing).
        columns: where the columns of each unit stand, int64 ``[units, most]``; -1 for none.
        order: which input stands where, int64 ``[k]``.
        there: number of columns that are there.
    """

    weight: Tensor
    felt: Tensor | None
    inverse: Tensor
    pull: Tensor
    columns: Tensor
    order: Tensor
    there: int

    @classmethod
    def of(
        cls, moments: Moments, weight: Tensor, damping: float, columns: Tensor, metric: Tensor | None = None
    ) -> ObsSolver:
        """Start at the optimum of :func:`refit`, with all inputs present.

        Args:
            moments, weight, damping: as in :func:`refit`.
            columns: the inputs that go with each unit, int64 ``[units, most]``; -1 for none.
            metric: weighs output errors ``e`` as ``e^T M e``, float64 ``[n, n]``; None for the identity.

        Raises:
            FxpruneError: as in :func:`refit`.
        """
        _check_finite(moments)
        ridge = _mean_ridge(moments, damping)
        factor = _factor(moments, ridge)
        metric = None if metric is None else metric.to(factor.device)
        best = weight.to(factor.device, torch.float64, copy=True)
        felt = None if metric is None else metric @ best
        pull = 0.5 * ridge * _quadratic(best, felt)
        if (change := _change(moments, factor)) is not None:
            best += change
            felt = None if metric is None else metric @ best
        inverse = torch.cholesky_inverse(factor, out=factor).mT
        order = torch.arange(len(inverse), device=best.device)
        return cls(best, felt, inverse, pull, columns.to(best.device, copy=True), order, len(order))

    def costs(self) -> Tensor:
        """Cost of removing each unit alone, float64 ``[units]``; 0 for a unit without columns."""
        costs = self.pull.new_zeros(len(self.columns))
        live = (self.columns >= 0).any(1)
        columns = self.columns[live]
        if self.columns.shape[1] == 1:
            felt = None if self.felt is None else self.felt[:, : self.there]
            found = _quadratic(self.weight[:, : self.there], felt) / self.inverse.diagonal()[: self.there]
            costs[live] = (0.5 * found - self.pull[: self.there])[columns[:, 0]]
        elif len(columns):
            costs[live] = self._costs_of(columns)
        return costs

    def _costs_of(self, columns: Tensor) -> Tensor:
        """Costs of units with these columns, ``[units, most]``: one small system for each."""
        filled = columns >= 0
        at = columns.clamp(min=0)
        blocks = self.inverse[at[:, :, None], at[:, None, :]]
        both = filled[:, :, None] & filled[:, None, :]
        blocks = torch.where(both, blocks, torch.eye(at.shape[1], dtype=blocks.dtype, device=blocks.device))
        rows = self.weight[:, at].permute(1, 2, 0)
        felt = rows if self.felt is None else self.felt[:, at].permute(1, 2, 0)
        solved = torch.linalg.solve(blocks, torch.where(both, rows @ felt.mT, 0.0))
        return 0.5 * solved.diagonal(dim1=1, dim2=2).sum(1) - torch.where(filled, self.pull[at], 0.0).sum(1)

    def remove(self, units: list[int]) -> None:
        """Remove units together; their weights become 0."""
        gone = self.columns[units].flatten()
        gone = gone[gone >= 0]
        stay = self.there - len(gone)
        if stay == self.there:
            return
        self._put_last(gone, stay)
        self.columns[units] = -1
        block, across = self.inverse[stay : self.there, stay : self.there], self.inverse[stay : self.there, :stay]
        solved = torch.linalg.solve(block, across)
        for weight in (self.weight, self.felt):
            if weight is not None:
                weight[:, :stay].addmm_(weight[:, stay : self.there], solved, alpha=-1)
        self.inverse[:stay, :stay].addmm_(across.T, solved, alpha=-1)
        self.there = stay

    def _put_last(self, gone: Tensor, stay: int) -> None:
        """Exchange columns that stand before ``stay`` with as many that stand after and are not among them."""
        going = torch.zeros(self.there, dtype=torch.bool, device=gone.device)
        going[gone] = True
        early, late = going[:stay].nonzero()[:, 0], (~going[stay:]).nonzero()[:, 0] + stay
        places, others = torch.cat([early, late]), torch.cat([late, early])
        rows = self.inverse[: self.there, : self.there]
        rows[places] = rows[others]
        for array in (rows, self.weight, self.felt, self.pull, self.order):
            if array is not None:
                array[..., places] = array[..., others]
        now = torch.arange(self.there, device=gone.device)
        now[others] = places
        self.columns = torch.where(self.columns >= 0, now[self.columns.clamp(min=0)], -1)

    def refitted(self) -> Tensor:
        """The weights with all removals compensated, 0 for what was removed, in the order of the inputs: ``[n, k]``."""
        whole = torch.zeros_like(self.weight)
        whole[:, self.order[: self.there]] = self.weight[:, : self.there]
        return whole


def _quadratic(weight: Tensor, felt: Tensor | None) -> Tensor:
    """``w^T M w`` of every column ``w``, ``[k]``, from the weights and ``M`` times the weights."""
    return weight.square().sum(0) if felt is None else (weight * felt).sum(0)
