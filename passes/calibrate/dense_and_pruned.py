"""The dense and the pruned model on the same calibration data, block by block, one linear map after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby

from torch import nn

from ...ir import FxpruneError, Plan
from ...ir.graph import Graph
from ...runtime.experts import ONE_BY_ONE, experts_as
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.blocks import BlockList
from ...runtime.streaming.turns import Turn, side_by_side
from ..couple.consumers import Consumer, find_consumers, meets_another
from ..state import State
from .batches import Feed, PaddingMasks
from .linear_maps import LinearMap, WeightAccess
from .observed_calls import ObservedCalls, OneModel, Visit
from .probe import Probe, probed

Consumers = Sequence[Consumer]


@dataclass
class DenseAndPruned:
    """The two models, and the linear maps whose inputs lost units.

    Attributes:
        dense, pruned: runners of the models; one object when nothing is cut yet.
        feeds: the calibration batches.
        graph: of the pruned model.
        plan: what was removed.
        consumers: the linear maps to refit, in execution order.
        left: tensors that read removed units but cannot be refitted.
        probe: what one batch has shown of the pruned model.
    """

    dense: BlockRunner
    pruned: BlockRunner
    feeds: Sequence[Feed]
    graph: Graph
    plan: Plan
    consumers: list[Consumer]
    left: list[str]
    probe: Probe

    @classmethod
    def of(cls, state: State, feeds: Sequence[Feed]) -> DenseAndPruned:
        """The models before and after the pruning passes, and what reads the places that were cut.

        Args:
            state: after a pruning pass, with the model from before it.
            feeds: the calibration batches.
        """
        subject, ledger, dense = state.subject, state.ledger, state.before.runner("same_layers")
        assert dense is not None
        assert ledger.plan is not None
        places = [place for place in ledger.consumers if place in ledger.plan.slices]
        return cls.between(subject.graph, (dense, subject.runner), feeds, places, ledger.plan)

    @classmethod
    def between(
        cls,
        graph: Graph,
        runners: tuple[BlockRunner, BlockRunner],
        feeds: Sequence[Feed],
        places: Sequence[tuple[str, int]],
        plan: Plan | None = None,
    ) -> DenseAndPruned:
        """Two models, and the linear maps of the pruned one at some (tensor, input dimension) places.

        Args:
            graph: graph of the pruned model.
            runners: of the dense and of the pruned model; one object twice for the same model.
            feeds: the calibration batches.
            places: the weights that may read units, with their input dimension.
            plan: what was removed from the pruned model; nothing when None.
        """
        dense, pruned = runners
        candidates = find_consumers(graph, places)
        probe = probed(pruned, feeds[0], candidates)
        consumers, left = [], []
        for candidate in candidates:
            at = probe.maps.get(candidate.tensor)
            if at is None or (at.dim == candidate.dim and not candidate.linear_only):
                left.append(candidate.tensor)
            elif at.dim == candidate.dim:
                consumers.append(candidate)
            elif candidate.dim == 0 and at.expert is not None and _is_last(candidate, candidates):
                consumers.append(replace(candidate, dim=at.dim))  # whole experts went: the others make up for them
        consumers = list({(consumer.tensor, consumer.dim): consumer for consumer in consumers}.values())
        same = dense is pruned
        pruned = pruned.stopping_at(probe.stops)
        if same:
            dense = pruned
        else:
            dense.whole.update(pruned.whole)
            modules = dict(dense.model.named_modules())
            dense = dense.stopping_at(path for path in probe.stops if path in modules)
        return cls(dense, pruned, feeds, graph, plan or Plan(), consumers, sorted(set(left)), probe)

    def probed(self, consumer: Consumer) -> LinearMap:
        """The linear map of a consumer, or of one of its experts, for its form; its values may not be there."""
        return self.probe.maps[consumer.tensor]

    def experts(self, consumer: Consumer) -> int:
        """Number of experts in its weight; 0 when it is a single linear map."""
        at = self.probed(consumer)
        return 0 if at.expert is None else at.parameter.shape[0]

    def in_order(self) -> Iterator[list[Consumer]]:
        """The consumers in execution order; those that read the same activation come together."""
        for _, found in groupby(self.consumers, key=lambda c: id(c.reads) if c.reads is not None else c.tensor):
            yield list(found)

    def place(self, consumer: Consumer, *, residual: bool = False) -> str | None:
        """The block, or the module outside of blocks, in whose turn a consumer can be observed; None without one.

        Args:
            consumer: the linear map.
            residual: whether what its outputs are added to matters.
        """
        holders = {self._blocks.holder(module) for module in consumer.modules}
        (path,) = holders if len(holders) == 1 else (None,)
        if path is None or self.probe.turns[path] != 1:
            return None
        return None if residual and path in self.probe.stops and meets_another(consumer, self.graph) else path

    @cached_property
    def _blocks(self) -> BlockList:
        """What has a turn in both models; nothing when they are built otherwise."""
        dense, pruned = self.dense.blocks, self.pruned.blocks
        return pruned if dense.modules.keys() == pruned.modules.keys() else BlockList()

    def visits(self, sets: Sequence[Consumers], *, residual: bool = False) -> Generator[Visit, None, None]:
        """Linear maps whose calls can be observed, and whose weights can be read and written; one set after the other.

        When the next set is asked for, the models go on with the weights as they are now.

        Args:
            sets: the linear maps in execution order; those of a set are observed together.
            residual: as in :class:`~.observed_calls.ObservedCalls`.
        """
        by_place: dict[str, dict[int, Consumers]] = {}
        for number, consumers in enumerate(sets):
            places = {self.place(consumer, residual=residual) for consumer in consumers}
            (place,) = places if len(places) == 1 else (None,)
            if place is None:
                yield from self._in_whole_passes(sets, residual)
                return
            by_place.setdefault(place, {})[number] = consumers
        yield from self._in_turns(by_place, residual)

    def _in_turns(self, by_place: Mapping[str, Mapping[int, Consumers]], residual: bool) -> Iterator[Visit]:
        """All batches through both models in step; no block runs after the last one that matters."""
        left = dict(by_place)
        with self._masked() as masks, closing(self._turns(*masks)) as turns:
            for dense, pruned in turns:
                if (sets := left.pop(pruned.path, None)) is not None:
                    one = OneModel(self.dense.model, partial(_run_kept, dense), masks[0])
                    other = one if dense is pruned else OneModel(self.pruned.model, pruned.run, masks[1])
                    yield from self._observed(sets, one, other, pruned.batches, residual)
                if not left:
                    return
        raise FxpruneError(
            f"{', '.join(left)} did not run on the calibration data",
            "leave out the pass that compares with the dense model",
        )

    def _turns(self, dense_masks: PaddingMasks, pruned_masks: PaddingMasks) -> Generator[tuple[Turn, Turn], None, None]:
        feeds = [_without_result(feed) for feed in self.feeds]
        pruned = self.pruned.turns(feeds, pruned_masks.around)
        if self.dense is not self.pruned:
            yield from side_by_side(self.dense.turns(feeds, dense_masks.around), pruned)
            return
        with closing(pruned):
            for turn in pruned:
                yield turn, turn

    def _in_whole_passes(self, sets: Sequence[Consumers], residual: bool) -> Iterator[Visit]:
        """The models run from the first layer to the last for every set."""
        same = self.dense is self.pruned
        with self._masked() as masks, self.pruned.session(), nullcontext() if same else self.dense.session():
            one, other = (
                OneModel(runner.model, partial(self._run_whole, runner.model, mask), mask)
                for runner, mask in zip((self.dense, self.pruned), masks, strict=True)
            )
            batches = range(len(self.feeds))
            for number, consumers in enumerate(sets):
                yield from self._observed(
                    {number: consumers}, one, one if same else other, batches, residual, brings=True
                )

    def _run_whole(self, model: nn.Module, masks: PaddingMasks, batch: int) -> None:
        with masks.around(batch):
            self.feeds[batch](model)

    def _observed(
        self,
        sets: Mapping[int, Consumers],
        dense: OneModel,
        pruned: OneModel,
        batches: Sequence[int],
        residual: bool,
        *,
        brings: bool = False,
    ) -> Iterator[Visit]:
        access = WeightAccess(self.pruned, brings=brings)
        experts = frozenset(consumer.tensor for consumer in self.consumers if self.experts(consumer))
        calls = ObservedCalls(dense, pruned, batches, self.plan, experts, access, residual)
        later = dict(sets)
        for number, consumers in sets.items():
            del later[number]
            following = [consumer for others in later.values() for consumer in others]
            yield Visit(number, calls.of(consumers, following), calls.named)

    @contextmanager
    def _masked(self) -> Iterator[tuple[PaddingMasks, PaddingMasks]]:
        """Inside, experts compute one by one; yields the padding masks of the two models."""
        models = self.dense.model, self.pruned.model
        with experts_as(ONE_BY_ONE, *models), PaddingMasks(models[0]) as dense, PaddingMasks(models[1]) as pruned:
            yield dense, pruned


def _is_last(stack: Consumer, others: Sequence[Consumer]) -> bool:
    """Whether no other weight of the same experts is used after this one."""
    return all(one.order <= stack.order for one in others if one.owner == stack.owner)


def _run_kept(turn: Turn, batch: int) -> None:
    """Run a block whose weights do not change; it does not run again."""
    turn.outputs[batch] = turn.run(batch)


def _without_result(feed: Feed) -> Feed:
    """What a model gives is not needed: it is not kept for all batches."""

    def run(model: nn.Module) -> None:
        feed(model)

    return run
