"""A host for passes that are run by hand: it traces a language model anew, for passes that take layers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.ir.graph import Graph
from fxprune.passes.state import NoHost
from fxprune.tracer.export import trace_causal_lm


class Retracing(NoHost):
    """Traces causal language models."""

    def retrace(self, model: nn.Module) -> tuple[Graph, Mapping[str, Any]]:
        """As a run of the command line does."""
        traced = trace_causal_lm(model)
        return traced.graph, traced.example
