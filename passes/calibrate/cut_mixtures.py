"""What the experts that stay should give, where others were removed: together what all gave before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...ir import FxpruneError
from .batches import LinearCall

ModuleCalls = list[tuple[Any, Any]]
"""Positional and keyword arguments of calls."""


def recorded_calls_of(module: nn.Module, run: Callable[[], object]) -> tuple[ModuleCalls, list[Any]]:
    """The arguments and results of a module's calls while something runs."""
    entered: ModuleCalls = []
    left: list[Any] = []

    def hook(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        entered.append((args, kwargs))
        left.append(out)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return entered, left


def targets_of(calls: Sequence[LinearCall], entered: ModuleCalls, present: Tensor, wanted: Tensor) -> list[Tensor]:
    """Targets for the outputs of the last linear map of every expert.

    What the mixture misses at a token is shared by the experts that the token is sent to, in proportion to their
    weights ``g``: each gets ``g / sum of g**2`` of it, the smallest change that makes up for all.

    Args:
        calls: of the experts that stay, in one run of the mixture.
        entered: the arguments of this run; two of them have the shape ``[T, k]``, the experts of every token and their
            weights.
        present: what the mixture gives, ``[T, n]``.
        wanted: what it gave before, ``[T, n]``.

    Returns:
        Targets ``[rows, n]`` for every call.

    Raises:
        FxpruneError: the outputs of the calls, weighted and added, are not what the mixture gives.
    """
    found = _picks(entered)
    if found is None or not calls:
        raise _unknown(calls)
    picked, gates = found
    missing, total = wanted.flatten(0, -2) - present.flatten(0, -2), gates.square().sum(1).clamp(min=1e-30)
    rebuilt = torch.zeros_like(missing)
    targets = []
    for call in calls:
        if call.expert is None:
            raise _unknown(calls)
        place, token = torch.where(picked.T.eq(call.expert))
        if len(token) != len(call.y):
            raise _unknown(calls)
        gate = gates[token, place][:, None]
        rebuilt.index_add_(0, token, (call.y * gate).to(rebuilt.dtype))
        targets.append(call.y + missing[token] * gate / total[token][:, None])
    there = present.flatten(0, -2)
    if float((rebuilt - there).abs().max()) > 1e-3 * float(there.abs().max()):
        raise _unknown(calls)
    return targets


def _picks(entered: ModuleCalls) -> tuple[Tensor, Tensor] | None:
    """The experts of every token and their weights, ``[T, k]`` each; None where one call had no two such arguments."""
    if len(entered) != 1:
        return None
    args, kwargs = entered[0]
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() == 2]
    for picked in (value for value in tensors if not value.is_floating_point()):
        for gates in (value for value in tensors if value.is_floating_point() and value.shape == picked.shape):
            return picked, gates
    return None


def _unknown(calls: Sequence[LinearCall]) -> FxpruneError:
    where = calls[0].tensor if calls else "a mixture"
    return FxpruneError(
        f"how the outputs of the experts in {where} are weighted and added cannot be seen",
        "leave the pass compensate out",
    )
