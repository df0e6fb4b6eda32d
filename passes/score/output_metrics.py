"""How errors of a linear map's outputs weigh in the loss: second moments of the gradients at the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ...ir.groups import Group
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.store import Kept, Shelf
from ..calibrate.batches import LinearCall
from ..calibrate.gram import add_gram, symmetric
from ..calibrate.linear_maps import LinearMap
from ..state import State
from .consumer_pass import ConsumerScored
from .consumer_scores import readers_of
from .gradients.activation_gradients import ActivationReceiver, activation_gradients, losses_of

_Key = tuple[str, int | None, int]
"""Weight, expert, and input dimension of a linear map."""

MetricOf = Callable[[LinearMap], Tensor | None]
"""The metric of a linear map's outputs, float64 ``[n, n]``, symmetric and without negative eigenvalues, to be asked for
once; None when all outputs count equally."""


def output_metrics(step: ConsumerScored, state: State, groups: Sequence[Group]) -> MetricOf:
    """For every linear map that reads the groups its outputs' Fisher information, ``E[g g^T] / tokens``.

    ``g`` is the gradient of the summed loss at the outputs of one token. Output errors ``e`` change the loss by
    about ``1/2 sum (e^T E[g g^T] e) / T`` nats per token, with ``T`` tokens in total (the Kronecker factors of
    Martens and Grosse 2015; for pruning the LLM Surgeon, arXiv 2312.17244). A metric is forgotten once it is given.
    """
    runner = state.subject.runner
    names = list(dict.fromkeys(reader.consumer.tensor for reader in readers_of(groups, state.subject.graph)))
    sums = _OuterProducts(None if runner.residence is None else runner.residence.store.shelf)
    predictions = activation_gradients(runner, list(losses_of(step, state)), lambda: _Receiver(runner, names, sums))

    predictions = sum(state.ranks.gather(predictions))

    def metric_of(at: LinearMap) -> Tensor | None:
        key = (at.tensor, at.expert, at.dim)
        own = sums.taken(key)
        total = state.ranks.sum_all({} if own is None else {key: own}).get(key)
        return None if total is None else symmetric(total).div_(predictions**2)

    return metric_of


class _OuterProducts:
    """Sums of ``g g^T``.

    Args:
        shelf: where those of finished blocks are kept; None for in memory, with all others.
    """

    def __init__(self, shelf: Shelf | None) -> None:
        self._shelf = shelf
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._growing: dict[_Key, Tensor] = {}
        self._put_away: dict[_Key, tuple[Kept, torch.device]] = {}

    def add(self, call: LinearCall, gradient: Tensor) -> None:
        """Add the gradient at the outputs of a call."""
        rows = gradient.movedim(call.channels, -1).flatten(0, -2)
        key = (call.tensor, call.expert, call.dim)
        if key not in self._growing:
            known = self.taken(key)  # of another block that calls the same weight
            self._growing[key] = (
                known if known is not None else torch.zeros(2 * rows.shape[1:], dtype=torch.float64, device=rows.device)
            )
        add_gram(self._growing[key], rows)

    def put_away(self) -> None:
        """Free the memory of those so far: they are complete."""
        while self._shelf is not None and self._growing:
            key, total = self._growing.popitem()
            self._put_away[key] = self._shelf.put("metric", total), total.device

    def taken(self, key: _Key) -> Tensor | None:
        """One of them, to be changed; it is forgotten here."""
        if key in self._put_away:
            kept, device = self._put_away.pop(key)
            return kept().to(device, copy=True)
        return self._growing.pop(key, None)


class _Receiver(ActivationReceiver):
    """Sums ``g g^T`` over the calls of some weights; those of a block are put away when the block is done."""

    def __init__(self, runner: BlockRunner, names: Sequence[str], sums: _OuterProducts) -> None:
        super().__init__(runner, names, lambda call: call.gave, sums.add, sums.clear)
        self._sums = sums

    def finished(self, names: Iterable[str]) -> None:
        del names
        self._sums.put_away()
