"""Which calls draw random numbers, and the switches that end it."""

from __future__ import annotations

from ..ir.graph import Graph

_RANDOM_OPERATORS = """
bernoulli bernoulli_ binomial multinomial normal normal_ poisson rand rand_like randint randint_like randn randn_like
randperm rrelu_with_noise uniform uniform_
"""
DRAWS = frozenset(f"aten.{name}" for name in _RANDOM_OPERATORS.split())
"""Operators that draw random numbers."""

_SWITCHES = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2, "native_dropout": 2}
_SWITCHES |= {"rrelu": 3, "scaled_dot_product_attention": 4}
SWITCHES = {f"aten.{name}": position for name, position in _SWITCHES.items()}
"""Operators that draw random numbers when this argument, counted from 0, is true or above zero -> its position."""


def drawing(graph: Graph) -> str:
    """The first operator of a graph that draws random numbers, with its place; "" when none does."""
    for op in graph.ops:
        switch = op.args[SWITCHES[op.packet] :][:1] if op.packet in SWITCHES else ()
        if op.packet in DRAWS or any(switch):
            return f"{op.target} at {op.source}" if str(op.source) else op.target
    return ""
