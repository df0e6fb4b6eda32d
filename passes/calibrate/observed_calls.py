"""The same linear calls in the dense and in the pruned model, at one place of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...ir import FxpruneError, Plan
from ...runtime.tensors import tensors_by_name
from ..couple.consumers import Consumer
from .batches import LinearCall, PaddingMasks
from .cut_mixtures import ModuleCalls, recorded_calls_of, targets_of
from .linear_calls import LinearCallRecorder
from .linear_maps import LinearForm, LinearMap, WeightAccess

ObservedCall = tuple[LinearMap, Tensor, Tensor, Tensor]
"""The linear map of the pruned model, its inputs ``[T, k]``, its target outputs and its present outputs ``[T, n]``; the
outputs are one tensor when they are what is wanted."""


@dataclass(frozen=True)
class Visit:
    """A set of linear maps that can be observed, read and written.

    Attributes:
        number: of the set.
        calls: their calls; the models run as these are taken.
        named: gives a linear map by its form, for those of which no call is seen.
    """

    number: int
    calls: Iterator[ObservedCall]
    named: Callable[[LinearForm], LinearMap]


@dataclass
class OneModel:
    """One of the two models, at a place.

    Attributes:
        model: the model.
        run: runs what is at the place, a block or all of the model, on a batch.
        masks: padding of the batches.
    """

    model: nn.Module
    run: Callable[[int], Any]
    masks: PaddingMasks

    def __post_init__(self) -> None:
        self.tensors = tensors_by_name(self.model)

    def calls(self, batch: int, names: Sequence[str]) -> list[LinearCall]:
        """Run a batch, and record the calls on some weights."""
        return self.recorded(lambda: self.run(batch), names, lambda: self.masks.of(batch))

    def recorded(
        self, run: Callable[[], Any], names: Sequence[str], mask: Callable[[], Tensor | None] = lambda: None
    ) -> list[LinearCall]:
        """The calls on some weights in what ``run`` does."""
        recorder = LinearCallRecorder({name: self.tensors[name] for name in names}, mask)
        with torch.no_grad(), recorder:
            run()
        return recorder.calls

    def entered(self, batch: int, names: Sequence[str], owner: str) -> tuple[list[LinearCall], list[Any]]:
        """The same, and the arguments with which a module was called."""
        found: list[Any] = []

        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            found.append((args, kwargs))

        handle = self.model.get_submodule(owner).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            return self.calls(batch, names), found
        finally:
            handle.remove()


@dataclass
class DenseTarget:
    """What the dense model gave in a call.

    Attributes:
        key: weight, expert and number of rows: the two models must agree on these.
        y: outputs that the pruned linear map still has, ``[T, n]``.
        beside: what they are added to, likewise; None where they are not.
    """

    key: tuple[str, int | None, int]
    y: Tensor
    beside: Tensor | None


@dataclass
class ObservedCalls:
    """The calls of linear maps at one place, of which all weights are in memory or are brought.

    A run of the dense model serves all maps of the place. What later ones need is kept until they come.

    Attributes:
        dense, pruned: the two models; one object when nothing is cut.
        batches: numbers of the batches.
        plan: what was removed from the pruned model.
        experts: weights that hold one linear map per expert.
        access: reaches the weights of the pruned model.
        residual: whether the target makes the sum of the outputs and what they are added to equal to the dense one.
    """

    dense: OneModel
    pruned: OneModel
    batches: Sequence[int]
    plan: Plan
    experts: frozenset[str]
    access: WeightAccess
    residual: bool
    _kept: dict[int, list[DenseTarget]] = field(default_factory=dict)

    def of(self, consumers: Sequence[Consumer], later: Sequence[Consumer] = ()) -> Iterator[ObservedCall]:
        """All calls of some linear maps, batch by batch.

        The two models may route tokens to different experts. So the dense experts get the tokens of the pruned model.

        Args:
            consumers: the linear maps; if one holds experts, all are called by one module.
            later: linear maps at this place that are to follow.

        Raises:
            FxpruneError: when the two models do not make the same calls.
        """
        names = [consumer.tensor for consumer in consumers]
        following = [consumer.tensor for consumer in later if consumer.tensor not in self.experts]
        routed = not self.experts.isdisjoint(names)
        for batch in self.batches:
            if self.dense is self.pruned:
                for call in self.pruned.calls(batch, names):
                    yield self._map(call), call.x, call.y, call.y
                continue
            if routed:
                got, wanted = self._routed(batch, names, consumers[0].owner)
            else:
                wanted = self._targets(batch, names, following)
                got = self.pruned.calls(batch, names)
            if [(call.tensor, call.expert, len(call.x)) for call in got] != [target.key for target in wanted]:
                raise FxpruneError(
                    f"the dense and the pruned model use {names[0]} differently on the same text",
                    "leave the pass compensate out",
                )
            while got:
                call, target = got.pop(0), wanted.pop(0)
                yield self._map(call), call.x, self._wanted(call, target), call.y

    def named(self, form: LinearForm) -> LinearMap:
        """A linear map of the pruned model by its form."""
        return LinearMap.from_form(form, self.pruned.tensors, self.access)

    def _wanted(self, call: LinearCall, target: DenseTarget) -> Tensor:
        if self.residual and call.beside is not None and target.beside is not None:
            return target.y + target.beside - call.beside
        return target.y

    def _targets(self, batch: int, names: Sequence[str], later: Sequence[str]) -> list[DenseTarget]:
        """What the dense model gives in a batch; it runs when that is not known yet."""
        if batch not in self._kept:
            self._kept[batch] = [self._target(call) for call in self.dense.calls(batch, [*names, *later])]
        known = self._kept[batch]
        self._kept[batch] = [target for target in known if target.key[0] not in names]
        return [target for target in known if target.key[0] in names]

    def _routed(self, batch: int, names: Sequence[str], owner: str) -> tuple[list[LinearCall], list[DenseTarget]]:
        if (names[0], 0) in self.plan.slices:
            return self._fewer_experts(batch, names, owner)
        got, entered = self.pruned.entered(batch, names, owner)
        module = self.dense.model.get_submodule(owner)

        def run() -> None:
            for args, kwargs in entered:
                module(*args, **kwargs)

        return got, [self._target(call) for call in self.dense.recorded(run, names)]

    def _fewer_experts(
        self, batch: int, names: Sequence[str], owner: str
    ) -> tuple[list[LinearCall], list[DenseTarget]]:
        """The dense mixture, its router too, gets what the pruned one gets."""
        mixture, got = owner.rpartition(".")[0], list[LinearCall]()
        outer, inner = (self.pruned.model.get_submodule(path) for path in (mixture, owner))
        inside: list[tuple[ModuleCalls, list[Any]]] = []

        def run() -> None:
            inside.append(recorded_calls_of(inner, lambda: got.extend(self.pruned.calls(batch, names))))

        given, _ = recorded_calls_of(outer, run)
        module = self.dense.model.get_submodule(mixture)

        def run_dense() -> None:
            with torch.no_grad():
                for args, kwargs in given:
                    module(*args, **kwargs)

        _, wanted = recorded_calls_of(self.dense.model.get_submodule(owner), run_dense)
        entered, present = inside[0]
        if not got or len(wanted) != 1 or len(present) != 1:
            raise FxpruneError(f"{owner} is not called once for a batch", "leave the pass compensate out")
        targets = targets_of(got, entered, present[0], self._left(got[0], wanted[0].flatten(0, -2)))
        keys = [(call.tensor, call.expert, len(call.x)) for call in got]
        return got, [DenseTarget(key, target, None) for key, target in zip(keys, targets, strict=True)]

    def _map(self, call: LinearCall) -> LinearMap:
        return LinearMap.of(call, self.pruned.tensors[call.tensor], self.access)

    def _target(self, call: LinearCall) -> DenseTarget:
        key = call.tensor, call.expert, len(call.x)
        if not self.residual or call.beside is None:
            return DenseTarget(key, self._left(call, call.y), None)
        return DenseTarget(key, self._left(call, call.y), self._left(call, call.beside))

    def _left(self, call: LinearCall, outputs: Tensor) -> Tensor:
        """The outputs of a dense call that the pruned linear map still has."""
        weight = self.dense.tensors[call.tensor]
        first = 0 if call.expert is None else 1
        out = first if weight.dim() - first > 2 else 2 * first + 1 - call.dim
        kept = self.plan.slices.get((call.tensor, out))
        return outputs if kept is None else outputs.index_select(1, torch.from_numpy(kept).to(outputs.device))
