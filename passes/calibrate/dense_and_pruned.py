"""The dense and the pruned model on the same calibration data, one linear map after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...ir import FxpruneError, Plan
from ...ir.graph import Graph
from ...runtime.experts import ONE_BY_ONE, experts_as
from ...runtime.tensors import tensors_by_name
from ..couple.consumers import Consumer, find_consumers
from ..model.forward import inference
from ..state import State
from .batches import Feed, LinearCall, matrix
from .blockwise_run import BlockwiseRun
from .linear_calls import LinearCallRecorder


@dataclass(frozen=True)
class LinearMap:
    """One linear map of the pruned model: a weight, or one expert's part of it, and its bias.

    Attributes:
        tensor, expert, dim: as in :class:`~.statistics.LinearCall`.
        weight: the parameter, or the expert's part of it, as a view ``[n, k]``.
        bias: ``[n]``; None without a bias.
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
        """Number of weights, and bias, of one output."""
        return self.weight.shape[1] + (self.bias is not None)

    def whole(self) -> Tensor:
        """Weight and bias side by side, ``[n, unknowns]``."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias.detach()[:, None]], 1)

    def put(self, whole: Tensor) -> None:
        """Write weight and bias, rounded to their dtype."""
        with torch.no_grad():
            self.weight.copy_(whole[:, : self.weight.shape[1]])
            if self.bias is not None:
                self.bias.copy_(whole[:, -1])


@dataclass
class DenseAndPruned:
    """The two models, and the linear maps whose inputs lost units.

    Attributes:
        dense, pruned: the models on the calibration batches; the same object when nothing is cut yet.
        plan: what was removed.
        consumers: the linear maps to refit, in execution order.
        left: tensors that read removed units but cannot be refitted.
        last_of_blocks: index of the last operator that runs in one of the blocks.
    """

    dense: BlockwiseRun
    pruned: BlockwiseRun
    plan: Plan
    consumers: list[Consumer]
    left: list[str]
    last_of_blocks: int
    _weights: tuple[dict[str, Tensor], dict[str, Tensor]]
    _probed: dict[str, LinearCall]

    @classmethod
    def of(cls, state: State, batches: Sequence[Feed]) -> DenseAndPruned:
        """The models before and after the pruning passes, and what reads the places that were cut.

        Args:
            state: after a pruning pass, with the model from before it.
            batches: of calibration data.
        """
        before, subject, ledger = state.before, state.subject, state.ledger
        assert before.same_layers is not None
        assert ledger.plan is not None
        places = [place for place in ledger.consumers if place in ledger.plan.slices]
        dense, pruned = BlockwiseRun.of(before.same_layers, batches), BlockwiseRun.of(subject.model, batches)
        return cls.between(subject.graph, dense, pruned, places, ledger.plan)

    @classmethod
    def between(
        cls,
        graph: Graph,
        dense: BlockwiseRun,
        pruned: BlockwiseRun,
        places: Sequence[tuple[str, int]],
        plan: Plan | None = None,
    ) -> DenseAndPruned:
        """Two models, and the linear maps of the pruned one at some (tensor, input dimension) places.

        Args:
            graph: graph of the pruned model.
            dense, pruned: the models on the same data.
            places: the weights that may read units, with their input dimension.
            plan: what was removed from the pruned model; nothing when None.
        """
        candidates = find_consumers(graph, places)
        tensors = tensors_by_name(pruned.model)
        weights = {c.tensor: tensors[c.tensor] for c in candidates}
        probe = {call.tensor: call for call in pruned.calls(0, weights, shapes_only=True)}
        consumers, left = [], []
        for candidate in candidates:
            call = probe.get(candidate.tensor)
            if call is None or (call.dim == candidate.dim and not candidate.linear_only):
                left.append(candidate.tensor)
            elif call.dim == candidate.dim:
                consumers.append(candidate)
        if dense.path != pruned.path or any(len(_blocks(dense, c)) > 1 for c in consumers):
            dense.blocks = pruned.blocks = ()
        inside = (n for n, op in enumerate(graph.ops) if dense.block_of(op.source.module) is not None)
        originals = tensors_by_name(dense.model)
        return cls(
            dense, pruned, plan or Plan(), consumers, sorted(set(left)), max(inside, default=0), (originals, tensors),
            probe,
        )  # fmt: skip

    def probed(self, consumer: Consumer) -> LinearMap:
        """The linear map of a consumer, or of one of its experts."""
        return self._map(self._probed[consumer.tensor])

    def named(self, tensor: str, expert: int | None, bias: Tensor | None) -> LinearMap:
        """The linear map of a weight that :attr:`consumers` name, or of one of its experts."""
        return self._map(replace(self._probed[tensor], expert=expert, bias=bias))

    def experts(self, consumer: Consumer) -> int:
        """Number of experts in its weight; 0 when it is a single linear map."""
        tensor = consumer.tensor
        return 0 if self._probed[tensor].expert is None else self._weights[1][tensor].shape[0]

    def in_order(self) -> Iterator[list[Consumer]]:
        """The consumers in execution order; those that read the same activation come together."""
        for _, found in groupby(self.consumers, key=lambda c: id(c.reads) if c.reads is not None else c.tensor):
            yield list(found)

    def observed(
        self, consumers: Sequence[Consumer], *, residual: bool = False
    ) -> Iterator[tuple[LinearMap, Tensor, Tensor, Tensor]]:
        """For every call of every batch: the linear map, its inputs, its target outputs, its present outputs.

        The targets are the dense model's outputs. With ``residual``, if the outputs are added to the residual stream,
        they are the outputs that make this sum equal to the dense model's.

        The two models may route tokens to different experts. So the dense experts get the tokens of the pruned model.

        Raises:
            FxpruneError: when the two models do not make the same calls.
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
                    "leave the pass compensate out",
                )
            for mine, theirs in zip(got, wanted, strict=True):
                wanted_now = self._kept(theirs, theirs.y)
                if residual and mine.beside is not None and theirs.beside is not None:
                    wanted_now = wanted_now + self._kept(theirs, theirs.beside) - mine.beside
                yield self._map(mine), mine.x, wanted_now, mine.y

    def _routed(self, owner: str, entered: Sequence[Any], originals: dict[str, Tensor]) -> list[LinearCall]:
        model = self.dense.model
        module, recorder = model.get_submodule(owner), LinearCallRecorder(originals)
        with inference(model), experts_as(ONE_BY_ONE, model), recorder:
            for args, kwargs in entered:
                module(*args, **kwargs)
        return recorder.calls

    def _place(self, consumer: Consumer) -> int | None:
        """Advance both models to the block of a consumer; returns its index, None when everything must run."""
        blocks = _blocks(self.dense, consumer)
        block = next(iter(blocks), None)
        if block is None and consumer.order > self.last_of_blocks:
            block = len(self.dense.blocks)
        if block is None or not self.dense.blocks or not self.pruned.blocks:
            return None
        self.dense.advance(block)
        self.pruned.advance(block)
        return block if block < len(self.dense.blocks) else None

    def _map(self, call: LinearCall) -> LinearMap:
        weight = matrix(self._weights[1][call.tensor].detach(), call)
        return LinearMap(call.tensor, call.expert, call.dim, weight, call.bias)

    def _kept(self, call: LinearCall, outputs: Tensor) -> Tensor:
        """The outputs of a dense call that the pruned linear map still has."""
        weight = self._weights[0][call.tensor]
        first = 0 if call.expert is None else 1
        out = first if weight.dim() - first > 2 else 2 * first + 1 - call.dim
        kept = self.plan.slices.get((call.tensor, out))
        return outputs if kept is None else outputs.index_select(1, torch.from_numpy(kept).to(outputs.device))


def _blocks(run: BlockwiseRun, consumer: Consumer) -> set[int]:
    return {block for module in consumer.modules if (block := run.block_of(module)) is not None}
