"""What passes run on in tests: the only place in the tests that constructs a `State`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from fxprune.ir.graph import Graph
from fxprune.ir.verifier import verify
from fxprune.passes.base import Pass
from fxprune.passes.couple.coupling import couple
from fxprune.passes.manager import run_pipeline
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.state import Before, Data, Ledger, NoHost, State, Subject
from fxprune.passes.structure import ANALYSES
from fxprune.tracer.export import Traced, trace_causal_lm
from fxprune.tracer.module import bind, trace_module

from .corpora import RandomTokens
from .retracing import Retracing


def state_of(graph: Graph | None, model: nn.Module, **parts: Any) -> State:
    """A state of a graph, of a module, and of nothing else but what ``parts`` name.

    Args:
        graph: None where a pass under test reads no graph.
        model: the module that the graph was traced from.
        parts: further attributes of the state's parts (``coupling``, ``calibration``, ``scores``), each by its own
            name; ``host``; and what was before: ``whole`` for the graph, ``dense`` and ``same_layers`` for the models.
    """
    kinds: dict[str, Any] = {"data": Data, "ledger": Ledger}
    names = {part: {one.name for one in fields(kind)} & parts.keys() for part, kind in kinds.items()}
    made = {part: kind(**{name: parts.pop(name) for name in names[part]}) for part, kind in kinds.items()}
    host = parts.pop("host", NoHost())
    before = Before(parts.pop("whole", None), parts.pop("dense", None), parts.pop("same_layers", None))
    return State(Subject(graph, model, **parts), host=host, before=before, **made)  # type: ignore[arg-type]


def decoder_state(model: Any, traced: Traced | None = None, **parts: Any) -> State:
    """A causal language model as a pipeline gets it, with its coupling, and random tokens to calibrate on.

    Args:
        model: in transformers' form.
        traced: its trace, where a test has one.
        parts: further attributes of the state, and those that shall be otherwise (``calibration=None``).
    """
    traced = trace_causal_lm(model) if traced is None else traced
    given: dict[str, Any] = {
        "coupling": couple(traced.graph),
        "example": traced.example,
        "calibration": RandomTokens(model.config.vocab_size),
        "host": Retracing(),
    }
    return state_of(traced.graph, model, **{**given, **parts})


def run_passes(state: State, *steps: Pass | str) -> State:
    """A state after passes, or after pipeline text, the graph verified after each."""
    passes: list[Pass] = []
    for step in steps:
        passes += parse_pipeline([step], PASSES) if isinstance(step, str) else [step]
    run_pipeline(passes, state, analyses=ANALYSES, verify=verify)
    return state


def module_state(model: nn.Module, x: Tensor, **parts: Any) -> State:
    """A module that takes one tensor, with its coupling. ``x [b, ...]``: the first dimension is a batch."""
    traced = trace_module(model, bind(model, x), batch=True)
    return state_of(traced.graph, model, **{"coupling": couple(traced.graph), "example": {"x": x}, **parts})
