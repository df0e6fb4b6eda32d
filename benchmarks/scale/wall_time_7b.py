"""Projected time of obs and compensate on a model with the geometry of 7B: one layer is measured, times 32.

python benchmarks/scale/wall_time_7b.py --json wall_time.json

Weights and inputs are random; the operations are those of the passes. Operations that depend on the number of
calibration tokens are measured with --tokens tokens and scaled to 128 windows of 128. All rounds of obs are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

WIDTH, INNER, HEADS, LAYERS, ROUNDS = 4096, 11008, 32, 32, 16
CALIBRATION = 128 * 128
GIB = 1024**3


@dataclass(frozen=True)
class Part:
    """One operation.

    Attributes:
        name: its name in the table.
        seconds: measured seconds.
        scale: factor from the measured size to that of one layer (tokens, rounds).
        counts: how often ``obs`` and ``compensate`` need it in a layer.
    """

    name: str
    seconds: float
    scale: float
    counts: tuple[float, float]

    def of(self, step: int) -> float:
        return self.seconds * self.scale * self.counts[step]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Process time of a function, which does not depend on other load; and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def layer_parts(tokens: int, scale: float) -> list[Part]:
    """Forward and backward of a decoder layer, float32.

    compensate runs a layer eight times: for each of its two linear maps in the dense and in the pruned model; once more
    in both for its outputs; and about once more in both to check, on one of 16 batches, that a layer passes nothing
    else to the next. obs with a budget runs only the dense model, and once with gradients of the activations.
    """
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaModel

    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=HEADS, num_hidden_layers=1, vocab_size=64
    )
    model = LlamaModel(config).eval()
    ids = torch.randint(64, (tokens // 128, 128), generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    embedded = torch.randn(*ids.shape, WIDTH, requires_grad=True)

    def both() -> None:
        out = model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        torch.autograd.grad(out.sum(), [embedded])

    forward()
    return [
        Part("forward of a layer", timed(forward)[0], scale, (4, 8)),
        Part("forward and backward of a layer", timed(both)[0], scale, (1, 0)),
    ]


def metric_parts(tokens: int, scale: float) -> tuple[list[Part], Any]:
    """The metric of output errors in obs: second moments of the gradients of WIDTH outputs."""
    import torch

    from fxprune.passes.calibrate.gram import add_gram, symmetric

    gradients, metric = torch.randn(tokens, WIDTH), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    counting = timed(lambda: add_gram(metric, gradients))[0]
    # Once for either map.
    return [Part("gradients' second moments", counting, scale, (2, 0))], symmetric(metric)


def map_parts(name: str, inputs: int, unit: int, metric: Any, tokens: int) -> list[Part]:
    """Statistics, rounds of obs and the refit of one linear map with WIDTH outputs, float64 as in the passes.

    With a budget, obs looks at the dense model only, whose outputs are what is wanted.
    """
    import torch

    from fxprune.passes.calibrate.least_squares import Moments, ObsSolver, refit

    x, errors = torch.randn(tokens, inputs), torch.randn(tokens, WIDTH)
    moments, weight = Moments.empty(inputs), torch.randn(WIDTH, inputs)
    counting = timed(lambda: moments.add(x))[0]
    columns = torch.arange(inputs).reshape(-1, unit)
    making, solver = timed(lambda: ObsSolver.of(moments, weight, 0.01, columns, metric))
    rounds = len(columns) - 1 if unit > 1 else ROUNDS
    at_once = 1 if unit > 1 else -(-(len(columns) - 1) // ROUNDS)
    costing = removing = 0.0
    # Every round is measured: each works on what the rounds before it left.
    for first in range(0, rounds * at_once, at_once):
        costing += timed(solver.costs)[0]
        going = list(range(first, min(first + at_once, len(columns) - 1)))
        removing += timed(partial(solver.remove, going))[0]
    again = Moments.empty(inputs)
    adding = timed(lambda: again.add(x, errors))[0]
    fitting = timed(lambda: refit(again, weight, 0.01))[0]
    return [
        Part(f"{name}: second moments of inputs", counting, CALIBRATION / tokens, (1, 0)),
        Part(f"{name}: optimum and inverse", making, 1, (1, 0)),
        Part(f"{name}: costs of all units, {rounds} rounds", costing, 1, (1, 0)),
        Part(f"{name}: removal, {rounds} rounds", removing, 1, (1, 0)),
        Part(f"{name}: second moments of inputs and errors", adding, CALIBRATION / tokens, (0, 1)),
        Part(f"{name}: refit", fitting, 1, (0, 1)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=512, help="number of calibration tokens to measure with")
    parser.add_argument("--layer-only", action="store_true", help="measure only forward and backward of a layer")
    parser.add_argument("--json", type=Path, help="JSON file for the measurements")
    options = parser.parse_args()
    scale = CALIBRATION / options.tokens
    parts = layer_parts(options.tokens, scale)
    if options.layer_only:
        print([(part.name, round(part.seconds, 2)) for part in parts])
        return
    found, metric = metric_parts(options.tokens, scale)
    parts += found
    print(f"a layer: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB at most", flush=True)
    for name, inputs, unit in (("o_proj", WIDTH, WIDTH // HEADS), ("down_proj", INNER, 1)):
        parts += map_parts(name, inputs, unit, metric, options.tokens)
        print(f"{name}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB at most", flush=True)
    for part in parts:
        per_layer = [f"{part.of(step):.1f}" for step in (0, 1)]
        print(f"| {part.name} | {part.seconds:.2f} | {part.scale:g} | {' | '.join(per_layer)} |")
    sums = [sum(part.of(step) for part in parts) for step in (0, 1)]
    print(f"| a layer | | | {sums[0]:.0f} | {sums[1]:.0f} |")
    print(f"| {LAYERS} layers, hours | | | {LAYERS * sums[0] / 3600:.1f} | {LAYERS * sums[1] / 3600:.1f} |")
    print(f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, {date.today()}")
    if options.json is not None:
        options.json.write_text(json.dumps([vars(part) for part in parts], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
