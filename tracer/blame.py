"""Explains trace errors: the place in the model's own code that caused one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from ..ir.graph import Graph

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent.parent / "tracer")

_NAMES = """
bernoulli bernoulli_ binomial multinomial normal normal_ poisson rand rand_like randint randint_like randn randn_like
randperm rrelu_with_noise uniform uniform_
"""
DRAWS = frozenset(f"aten.{name}" for name in _NAMES.split())
"""Operators that draw random numbers."""

_SWITCHES = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "feature_alpha_dropout": 2, "native_dropout": 2}
_SWITCHES |= {"rrelu": 3, "scaled_dot_product_attention": 4}
SWITCHES = {f"aten.{name}": position for name, position in _SWITCHES.items()}
"""Operators that draw random numbers when this argument, counted from 0, is true or above zero -> its position."""


def blamed(error: BaseException, model: nn.Module) -> str:
    """``module (file:line)`` of the innermost frame of the model's own code in the traceback; "" for none."""
    paths = {id(module): path or "its root module" for path, module in model.named_modules()}
    found = ""
    for frame, line in _frames(error):
        file = frame.f_code.co_filename
        module = frame.f_locals.get("self")
        if file.startswith((_TORCH, _OWN)) or id(module) not in paths:
            continue
        found = f"{paths[id(module)]} ({'/'.join(Path(file).parts[-2:])}:{line})"
    return found


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames of an error, outermost first, then those of its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield from traceback.walk_tb(current.__traceback__)
        current = current.__cause__ or current.__context__


def drawing(graph: Graph) -> str:
    """The first operator of a graph that draws random numbers, with its place; "" when none does."""
    for op in graph.ops:
        switch = op.args[SWITCHES[op.packet] :][:1] if op.packet in SWITCHES else ()
        if op.packet in DRAWS or any(switch):
            return f"{op.target} at {op.source}" if str(op.source) else op.target
    return ""
