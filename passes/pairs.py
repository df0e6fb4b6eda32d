"""The dense and the pruned model side by side on calibration data, one linear map after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..ir import FxpruneError, Plan
from ..ir.graph import Graph
from ..runtime.experts import ONE_BY_ONE, experts_as
from ..runtime.tensors import tensors_by_name
from .consumers import Consumer, find_consumers
from .measure import inference
from .state import State
from .statistics import Feed, Seen, matrix
from .streams import Stream
from .watch import Watch


@dataclass(frozen=True)
class Map:
    """One linear map of the pruned model: a weight, or one expert's part of it, with the bias that goes with it.

    Attributes:
        tensor, expert, dim: as in :class:`~.statistics.Seen`.
        weight: the parameter, or the expert's part of it, as a view ``[n, k]``.
        bias: ``[n]``, None where there is none.
    """

    tensor: str
    expert: int | None
    dim: int
    weight: Tensor = field(compare=False, repr=False)
    bias: Tensor | None = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"

    @property
    def unknowns(self) -> int:
        """Of one output."""
        return self.weight.shape[1] + (self.bias is not None)

    def whole(self) -> Tensor:
        """Weight and bias side by side, ``[n, unknowns]``."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias.detach()[:, None]], 1)

    def put(self, whole: Tensor) -> None:
        """Write weight and bias, rounded to their type."""
        with torch.no_grad():
            self.weight.copy_(whole[:, : self.weight.shape[1]])
            if self.bias is not None:
                self.bias.copy_(whole[:, -1])


@dataclass
class Pairs:
    """What the two models compute where maps lost inputs.

    Attributes:
        dense, pruned: the models on the calibration batches; one and the same where nothing is cut yet.
        plan: what was removed.
        consumers: the maps to refit, in the order in which they run.
        left: tensors that take in what was cut, and that cannot be refitted.
        last_of_blocks: number of the last operator that runs in one of the blocks.
    """

    dense: Stream
    pruned: Stream
    plan: Plan
    consumers: list[Consumer]
    left: list[str]
    last_of_blocks: int
    _weights: tuple[dict[str, Tensor], dict[str, Tensor]]
    _probed: dict[str, Seen]

    @classmethod
    def of(cls, state: State, batches: Sequence[Feed]) -> Pairs:
        """The models before and after the pruning passes, and what reads the places that were cut.

        Args:
            state: after a pruning pass, with the model from before it.
            batches: of calibration data.
        """
        before, subject, ledger = state.before, state.subject, state.ledger
        assert before.same_layers is not None
        assert ledger.plan is not None
        places = [place for place in ledger.consumers if place in ledger.plan.slices]
        dense, pruned = Stream.of(before.same_layers, batches), Stream.of(subject.model, batches)
        return cls.between(subject.graph, dense, pruned, places, ledger.plan)

    @classmethod
    def between(
        cls, graph: Graph, dense: Stream, pruned: Stream, places: Sequence[tuple[str, int]], plan: Plan | None = None
    ) -> Pairs:
        """Two models, and the calls that read some (tensor, dimension) places of the second as inputs.

        Args:
            graph: of the second.
            dense, pruned: the models on the same data.
            places: what may take units in.
            plan: what the second lacks; nothing when None.
        """
        candidates = find_consumers(graph, places)
        tensors = tensors_by_name(pruned.model)
        weights = {c.tensor: tensors[c.tensor] for c in candidates}
        probe = {seen.tensor: seen for seen in pruned.calls(0, weights, shapes_only=True)}
        consumers, left = [], []
        for candidate in candidates:
            seen = probe.get(candidate.tensor)
            if seen is None or (seen.dim == candidate.dim and not candidate.linear_only):
                left.append(candidate.tensor)
            elif seen.dim == candidate.dim:
                consumers.append(candidate)
        if dense.path != pruned.path or any(len(_blocks(dense, c)) > 1 for c in consumers):
            dense.blocks = pruned.blocks = ()
        inside = (n for n, op in enumerate(graph.ops) if dense.block_of(op.source.module) is not None)
        originals = tensors_by_name(dense.model)
        return cls(
            dense, pruned, plan or Plan(), consumers, sorted(set(left)), max(inside, default=0), (originals, tensors),
            probe,
        )  # fmt: skip

    def probed(self, consumer: Consumer) -> Map:
        """The map of a consumer, or of one of its experts."""
        return self._map(self._probed[consumer.tensor])

    def experts(self, consumer: Consumer) -> int:
        """How many experts its weight holds, 0 where it is one map."""
        tensor = consumer.tensor
        return 0 if self._probed[tensor].expert is None else self._weights[1][tensor].shape[0]

    def in_order(self) -> Iterator[list[Consumer]]:
        """The consumers, those together that read the same activation."""
        for _, found in groupby(self.consumers, key=lambda c: id(c.reads) if c.reads is not None else c.tensor):
            yield list(found)

    def observed(
        self, consumers: Sequence[Consumer], *, residual: bool = False
    ) -> Iterator[tuple[Map, Tensor, Tensor, Tensor]]:
        """Batch by batch, call by call: the map, its inputs, the outputs that are wanted of it, those it gives.

        Wanted are the dense model's outputs; with ``residual``, where outputs are added to something, those with which
        the sum is the dense model's.

        Experts are given what the pruned model routes to them, in both models, since the two may route differently.

        Raises:
            FxpruneError: where the two models do not make the same calls.
        """
        last = self._place(consumers[0])
        names = [consumer.tensor for consumer in consumers]
        originals, tensors = ({name: held[name] for name in names} for held in self._weights)
        routed = any(self._probed[name].expert is not None for name in names)
        for batch in range(len(self.pruned.feeds)):
            entered: list[Any] = []
            owner = consumers[0].owner
            hook = (owner, lambda _m, args, kwargs, entered=entered: entered.append((args, kwargs)))
            got = self.pruned.calls(batch, tensors, last, hook if routed else None)
            if self.dense is self.pruned:
                wanted = got
            elif routed:
                wanted = self._routed(owner, entered, originals)
            else:
                wanted = self.dense.calls(batch, originals, last)
            if [(s.tensor, s.expert, len(s.x)) for s in got] != [(s.tensor, s.expert, len(s.x)) for s in wanted]:
                raise FxpruneError(
                    f"the dense and the pruned model use {names[0]} differently on the same text",
                    "leave compensate out",
                )
            for mine, theirs in zip(got, wanted, strict=True):
                wanted_now = self._kept(theirs, theirs.y)
                if residual and mine.beside is not None and theirs.beside is not None:
                    wanted_now = wanted_now + self._kept(theirs, theirs.beside) - mine.beside
                yield self._map(mine), mine.x, wanted_now, mine.y

    def _routed(self, owner: str, entered: Sequence[Any], originals: dict[str, Tensor]) -> list[Seen]:
        model = self.dense.model
        module, watch = model.get_submodule(owner), Watch(originals)
        with inference(model), experts_as(ONE_BY_ONE, model), watch:
            for args, kwargs in entered:
                module(*args, **kwargs)
        return watch.seen

    def _place(self, consumer: Consumer) -> int | None:
        """Bring both models up to the block of a consumer."""
        blocks = _blocks(self.dense, consumer)
        block = next(iter(blocks), None)
        if block is None and consumer.order > self.last_of_blocks:
            block = len(self.dense.blocks)
        if block is None or not self.dense.blocks or not self.pruned.blocks:
            return None
        self.dense.advance(block)
        self.pruned.advance(block)
        return block if block < len(self.dense.blocks) else None

    def _map(self, seen: Seen) -> Map:
        weight = matrix(self._weights[1][seen.tensor].detach(), seen)
        return Map(seen.tensor, seen.expert, seen.dim, weight, seen.bias)

    def _kept(self, seen: Seen, outputs: Tensor) -> Tensor:
        """Of the dense outputs of a call those that the pruned map still has."""
        weight = self._weights[0][seen.tensor]
        first = 0 if seen.expert is None else 1
        out = first if weight.dim() - first > 2 else 2 * first + 1 - seen.dim
        kept = self.plan.slices.get((seen.tensor, out))
        return outputs if kept is None else outputs.index_select(1, torch.from_numpy(kept).to(outputs.device))


def _blocks(stream: Stream, consumer: Consumer) -> set[int]:
    return {block for module in consumer.modules if (block := stream.block_of(module)) is not None}
