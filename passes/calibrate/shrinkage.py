"""How strongly a refit holds on to the present weights: what the calibration data itself says of that."""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 2
"""So many tokens are worth one that is independent of all others: those of a window are alike. Chosen among 1, 2 and 3
on the validation texts of three models (docs/decisions.md)."""

ROWS_READ = 256
"""Outputs that the share of the errors which inputs explain is estimated from; of more, as many spread over all."""

_PROBES = 64
_LEAST_SHARE = 1e-3
_FLOOR = 1e-8
"""Ridge of an input that is always 0, relative to the mean second moment."""


def ridge_of(inputs: Tensor, errors: Tensor, energy: Tensor, count: int) -> Tensor:
    """The ridge of each input under which a refit errs least on other tokens, ``[k]``, by empirical Bayes.

    Let the change of a weight be normal with variance ``t^2 / s_j``, where ``s_j`` is the mean second moment of its
    input, so that each of the ``k`` inputs contributes ``t^2`` to the variance of an output; and let ``v^2`` be that of
    what no change explains. The most probable change then has the ridge ``v^2/t^2 s_j``. The inputs explain the share
    ``R^2 = k t^2 / (k t^2 + v^2)`` of the errors, so that this is ``k/n (1 - R^2)/R^2`` times the summed second moment
    of the input, with ``n`` independent tokens: it grows with the unknowns for each token, and where little can be
    explained.

    Args:
        inputs: sum of ``x x^T``, ``[k, k]``, at and above the diagonal; stays as it is.
        errors: sum of ``e x^T``, ``[n, k]``.
        energy: sum of ``e^2`` of each output, ``[n]``.
        count: number of tokens.
    """
    sizes = inputs.diagonal()
    share = explained_share(inputs, errors, energy, count)
    strength = ALIKE * len(sizes) / count * (1 - share) / share
    return strength * sizes + _FLOOR * sizes.mean()


def explained_share(inputs: Tensor, errors: Tensor, energy: Tensor, count: int) -> float:
    """``R^2`` of :func:`ridge_of`, from two moments of the errors, also where there are fewer tokens than unknowns.

    With ``G`` the summed moments of the inputs, ``D`` its diagonal, ``A = G + c D`` and ``q = tr(A^-1 D)``, an output
    has in expectation the energy ``n v^2 + n k t^2``, of which ``A`` takes
    ``E X A^-1 X^T E^T = v^2 tr(A^-1 G) + n t^2 tr(A^-1 G D^-1 G) = v^2 (k - c q) + n t^2 (k - c k + c^2 q)``. These two
    equations are solved for the sums over outputs, with ``c = k/n``. Random signs estimate ``q``.

    Args:
        inputs, errors, energy, count: as for :func:`ridge_of`.

    Returns:
        From ``_LEAST_SHARE`` to nearly 1; a half where the moments do not tell the two apart.
    """
    read = min(ROWS_READ, len(errors))
    chosen = torch.arange(read, device=errors.device) * len(errors) // read
    whole = float(energy[chosen].sum())
    if not whole:
        return _LEAST_SHARE
    sizes, unknowns = inputs.diagonal() + _FLOOR * inputs.diagonal().mean(), len(inputs)
    held = unknowns / count
    system = inputs.mT.clone(memory_format=torch.preserve_format)
    system.diagonal().add_(held * sizes)
    factor, failed = torch.linalg.cholesky_ex(system, out=(system, system.new_empty(0, dtype=torch.int32)))
    if int(failed):
        return 0.5
    signs = torch.randint(0, 2, (unknowns, _PROBES), generator=torch.Generator().manual_seed(0)).to(sizes) * 2 - 1
    right = torch.cat([errors[chosen].mT, signs * sizes.sqrt()[:, None]], 1)
    taken = torch.linalg.solve_triangular(factor, right, upper=False).square().sum(0)
    trace = float(taken[read:].mean())
    of_noise, of_change = unknowns - held * trace, count * (unknowns - held * unknowns + held * held * trace)
    apart = of_change - unknowns * of_noise
    if apart <= _FLOOR * of_change:
        return 0.5
    change = (float(taken[:read].sum()) - whole / count * of_noise) / apart
    return min(max(unknowns * count * change / whole, _LEAST_SHARE), 1 - _FLOOR)
