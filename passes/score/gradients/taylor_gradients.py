"""Taylor contributions from gradients as they are computed: what each variant keeps, and when it reduces it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from ....runtime.ranks import ALONE, Ranks
from ....runtime.streaming.gradient_receiver import GradientReceiver
from ..position_scores import Slab, as_contributions, position_sums, require_finite, slabs_of
from ..units import Contributions, Wanted

if TYPE_CHECKING:
    from torch import Tensor

NOT_FINITE = "compute the scores in float32, and check the calibration text"

Saliency = Callable[[Slab], "Tensor"]

GRADIENT, SQUARES, MIXED = "gradient", "squares", "mixed"


class TaylorReceiver(GradientReceiver):
    """Contributions of weights ``W`` with gradients ``g_j`` of each of N losses and ``g`` of their mean.

    ``vector`` and ``element1`` keep the sum of the gradients of a block until all losses have passed it, ``element2``
    the sum of ``W g_j - 1/2 (W g_j)^2``. With a single loss nothing is kept: each gradient is reduced and freed.

    Several ranks add up what they keep before it is reduced, block by block, each sum on one rank.

    Args:
        variant: which contributions.
        wanted: what to score.
        losses: how many there are, on all ranks.
        named: number of a loss of this rank -> what it is computed on, for messages; None for all losses.
        ranks: who shares the losses.

    Attributes:
        contributions: what has been reduced.
        reached: names of the parameters that received a gradient.
    """

    def __init__(
        self, variant: str, wanted: Wanted, losses: int, named: Callable[[int | None], str], ranks: Ranks = ALONE
    ) -> None:
        self._variant, self._wanted, self._count, self._named = variant, wanted, losses, named
        self._ranks, self._device = ranks, torch.device("cpu")
        self.restart()

    def restart(self) -> None:
        self.contributions: Contributions = {}
        self.reached: Counter[str] = Counter()
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def parameter(self, batch: int, name: str, weight: Tensor, gradient: Tensor) -> None:
        self.reached[name] += 1
        weight = weight.detach()
        self._device = weight.device
        if self._variant == "second":
            self._add_squares(batch, name, weight, gradient)
        elif self._variant == "element2":
            known = self._kept.get(name)
            self._kept[name] = weight, self._mixed(None if known is None else known[1], weight, gradient)
        elif self._count == 1:  # and one rank
            self._first_order(name, weight, gradient)
        elif name in self._kept:
            self._kept[name][1].add_(gradient)
        else:
            kept = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            self._kept[name] = weight, kept

    def finished(self, names: Iterable[str]) -> None:
        for name in self._added_up(names):
            weight, kept = self._kept.pop(name)
            if self._variant == "element2":
                self._reduce(name, weight, _absolute(kept), None)
            else:
                self._first_order(name, weight, kept.div_(self._count))

    def _added_up(self, names: Iterable[str]) -> Iterator[str]:
        """The parameters of which this rank reduces what is kept, which is then what all ranks have kept."""
        there = [name for name in names if name in self._kept]
        if self._ranks.count == 1:
            yield from there
            return
        forms = self._ranks.gather({name: tuple(self._kept[name][1].shape) for name in there})
        for number, name in enumerate(dict.fromkeys(name for form in forms for name in form)):
            holders = [rank for rank, form in enumerate(forms) if name in form]
            owner = holders[number % len(holders)]
            weight, kept = self._kept.get(name) or (None, torch.zeros(forms[owner][name], device=self._device))
            total = self._ranks.sum(kept, to=owner)
            self._kept.pop(name, None)
            if owner == self._ranks.index and weight is not None:
                self._kept[name] = weight, total
                yield name

    def join(self) -> None:
        """Add up the contributions of all ranks, when there are no more gradients."""
        self.contributions = self._ranks.sum_arrays(self.contributions)
        self.reached = sum(self._ranks.gather(self.reached), Counter())

    def _first_order(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """``W * g``: absolute values of the elements before the sum for ``element1``, of the sums otherwise."""
        absolute = self._variant == "element1"

        def saliency(slab: Slab) -> Tensor:
            part = weight[slab].double() * gradient[slab]
            return part.abs_() if absolute else part

        self._reduce(name, weight, saliency, None)

    def _add_squares(self, batch: int, name: str, weight: Tensor, gradient: Tensor) -> None:
        def saliency(slab: Slab) -> Tensor:
            return (weight[slab].double() * gradient[slab]).square_().div_(self._count)

        self._reduce(name, weight, saliency, batch)

    def _mixed(self, saliency: Tensor | None, weight: Tensor, gradient: Tensor) -> Tensor:
        """Add the share of one loss, in the weight's dtype, but at least float32."""
        if saliency is None:
            saliency = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for slab in slabs_of(weight):
            change = weight[slab].double() * gradient[slab]
            saliency[slab] += change.sub_(change.square().mul_(0.5)).div_(self._count)
        return saliency

    def _reduce(self, name: str, weight: Tensor, saliency: Saliency, batch: int | None) -> None:
        sums = position_sums(weight, self._wanted[name], saliency)
        message = f"the gradient of {name!r} on {self._named(batch)} is not finite"
        require_finite(sums, message, NOT_FINITE)
        for key, vector in as_contributions(name, {dim: total.abs() for dim, total in sums.items()}).items():
            known = self.contributions.get(key)
            self.contributions[key] = vector if known is None else known + vector

    def all(self, shapes: dict[str, torch.Size]) -> Contributions:
        """All contributions; those of parameters that no loss depends on are zero."""
        zeros = {
            (name, dim): torch.zeros(shapes[name][dim], dtype=torch.float64).numpy()
            for name, dims in self._wanted.items()
            for dim in dims
        }
        return zeros | self.contributions


def _absolute(values: Tensor) -> Saliency:
    return lambda slab: values[slab].double().abs()
