"""Time of the analysis compared with torch.export alone: trace, couple and plan of large models on the meta device.

python benchmarks/trace_time.py
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from datetime import date
from typing import Any

import torch
import transformers

from fxprune.passes.couple.coupling import couple
from fxprune.passes.score.random import Random
from fxprune.passes.select.scope import Scope, chosen_groups
from fxprune.passes.select.select import select
from fxprune.passes.shrink.graph import make_plan
from fxprune.passes.state import State, Subject
from fxprune.tracer.export import trace_causal_lm

LLAMA: dict[str, Any] = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
GEOMETRIES = {
    "LLaMA-7B": transformers.LlamaConfig(**LLAMA, intermediate_size=11008),
    "Llama-3-8B": transformers.LlamaConfig(
        **LLAMA, intermediate_size=14336, num_key_value_heads=8, vocab_size=128256
    ),
    "Qwen3-8B": transformers.Qwen3Config(
        hidden_size=4096, num_attention_heads=32, num_hidden_layers=36, intermediate_size=12288,
        num_key_value_heads=8, head_dim=128, vocab_size=151936,
    ),
}  # fmt: skip


def on_meta(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def measure(config: Any, repeats: int) -> dict[str, float]:
    """The best time of every step in ``repeats`` runs, in seconds; the two ways of tracing alternate."""
    model = on_meta(config)
    rounds = [_round(model) for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in rounds[0]}


def _round(model: torch.nn.Module) -> dict[str, float]:
    times: dict[str, float] = {}

    def timed(name: str, call: Any) -> Any:
        started = time.perf_counter()
        result = call()
        times[name] = time.perf_counter() - started
        return result

    inputs = {"input_ids": torch.zeros(3, 5, dtype=torch.long, device="meta"), "use_cache": False}
    timed("export", lambda: torch.export.export(model, (), inputs, strict=False))
    traced = timed("trace", lambda: trace_causal_lm(model))
    coupling = timed("couple", lambda: couple(traced.graph))
    groups, _ = chosen_groups(coupling.groups.values(), Scope())
    scores = Random().scores(groups, State(Subject(traced.graph, model, coupling)))
    timed("plan", lambda: make_plan(coupling, select(groups, scores, 0.25)))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {date.today()}")
    for name, config in GEOMETRIES.items():
        best = measure(config, repeats)
        ratio = (best["trace"] + best["couple"] + best["plan"]) / best["export"]
        print(name, ", ".join(f"{k} {v:.2f} s" for k, v in best.items()), f"ratio {ratio:.2f}", flush=True)
    for layers in (32, 64):
        config = transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": layers}, intermediate_size=11008)
        graph = trace_causal_lm(on_meta(config)).graph
        times = []
        for _ in range(5):
            started = time.perf_counter()
            couple(graph)
            times.append(time.perf_counter() - started)
        print(f"couple, {layers} layers: {min(times) * 1000:.0f} ms", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
