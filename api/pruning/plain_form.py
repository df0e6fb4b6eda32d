"""The uniform form, asked for by name: which plans of a run leave a model that a plain configuration describes."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch.func import functional_call

from ...backends.huggingface.plain import why_not_plain
from ...backends.huggingface.synthetic_weights import SyntheticWeights, sampled_products
from ...ir.graph import Graph
from ...ir.plan import Plan
from ...passes.shrink.graph import extents_by_module
from ...passes.state import State
from ...runtime.streaming.left_as_found import left_as_found
from ...runtime.tensors import sliced
from ...runtime.tolerances import LOGITS_TOLERANCE, relative_difference
from ...tracer.example import uncached
from ...tracer.export import Traced
from ..model_call import ModelCall, counted


class Running(Protocol):
    """A model on its way through a pipeline, as :class:`.model_run.ModelRun`."""

    state: State
    traced: Traced
    model_call: ModelCall
    quantities: frozenset[tuple[int, int]]
    synthetic: SyntheticWeights | None


class PlainForm:
    """Asks before a cut. What counts is code and shapes, so weights are synthetic."""

    def __init__(self, work: Running) -> None:
        self._work = work

    @cached_property
    def _synthetic(self) -> SyntheticWeights:
        return self._work.synthetic or SyntheticWeights(self._work.state.subject.model)

    def why_not(self, plan: Plan, after: Graph) -> str:
        """Why no plain configuration describes the model after a plan, with the rewritten graph; "" when one does."""
        work = self._work
        model = work.state.subject.model
        quantities = work.quantities | extents_by_module(work.traced.graph, after).get("", frozenset())
        # Those of the smaller model may hold other values, such as the root of its width; the graph keeps the old ones.
        buffers = {name: held for name, held in model.named_buffers(remove_duplicate=False) if not held.is_meta}
        buffers = sliced(
            buffers, Plan(slices={place: kept for place, kept in plan.slices.items() if place[0] in buffers})
        )

        def same(candidate: torch.nn.Module) -> bool:
            tensors, call = self._synthetic.tensors(candidate), work.model_call
            with sampled_products(), left_as_found(candidate, values=True):
                output = functional_call(candidate, tensors, (), {**call.inputs, **uncached(candidate)})
                wanted = call.run_graph(after, work.traced, candidate, {**tensors, **buffers})
            found = counted(output, work.traced.outputs)[: len(wanted)]
            pairs = zip(found, wanted, strict=True)
            return all(relative_difference(got, expected) <= LOGITS_TOLERANCE for got, expected in pairs)

        return why_not_plain(model, plan, quantities, same)
