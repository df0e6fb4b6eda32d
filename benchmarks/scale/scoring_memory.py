"""Peak memory of scoring in addition to weights and activations, in units of the largest single gradient.

    python benchmarks/scale/scoring_memory.py
    python benchmarks/scale/scoring_memory.py --samples 2 --length 3   # small activations, so that gradients show

The profiler of torch records every allocation and release of its CPU allocator. The peak of a scoring run is compared
with the peak of a forward pass that keeps activations for training, and a backward pass to the token embeddings that
computes no gradient of a parameter. The profiler keeps every event, so for a much larger model the profile needs more
memory than scoring. The exit code is 1 if a variant needs more than two gradients.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from fxprune.passes.score.gradients.taylor_terms import taylor
from fxprune.runtime.streaming.block_runner import BlockRunner

LIMIT = 2.0
MIB = 2**20


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak memory in bytes that was allocated during ``run``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    peak = live = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        live += change
        peak = max(peak, live)
    return peak


def activations_only(model: nn.Module, tokens: Tensor) -> None:
    """Forward pass, and backward pass to the token embeddings, without the gradient of any parameter."""
    embedded: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: embedded.append(output))
    try:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        torch.autograd.grad(loss, embedded)
    finally:
        handle.remove()


def build(options: argparse.Namespace, tied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config).to(getattr(torch, options.dtype)).eval()


def measure(options: argparse.Namespace, tied: bool) -> list[tuple[str, float, float, float, float]]:
    """Rows of: variant, seconds, MiB of weights and activations, further MiB, and these in largest gradients."""
    model = build(options, tied)
    tokens = torch.randint(options.vocab, (options.samples, options.length))
    wanted = {name: frozenset(range(p.dim())) for name, p in model.named_parameters()}
    weights = sum(p.nbytes for p in model.parameters())
    largest = max(p.nbytes for p in model.parameters())
    rows = []
    activations_only(model, tokens)  # whatever is allocated once is allocated now
    for variant in ("vector", "element1", "second", "element2"):
        batch = tokens[:1] if variant == "second" else tokens  # this one runs the samples one by one
        activations = peak_bytes(lambda batch=batch: activations_only(model, batch))
        start = time.perf_counter()
        peak = peak_bytes(lambda variant=variant: taylor(BlockRunner(model), tokens, wanted, variant))
        seconds = time.perf_counter() - start
        beyond = peak - activations
        rows.append((variant, seconds, (weights + activations) / MIB, beyond / MIB, beyond / largest))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(hidden=256, layers=2, vocab=8000, samples=4, length=64).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, {vars(options)}")
    worst = 0.0
    for tied in (False, True):
        model = build(options, tied)
        total = sum(p.nbytes for p in model.parameters()) / MIB
        largest = max(p.nbytes for p in model.parameters()) / MIB
        print(f"\n{'tied' if tied else 'untied'}: gradients {total:.1f} MiB, the largest {largest:.1f} MiB")
        print(f"{'variant':10} {'seconds':>8} {'inherent MiB':>13} {'beyond MiB':>11} {'largest gradients':>18}")
        for variant, seconds, inherent, beyond, ratio in measure(options, tied):
            print(f"{variant:10} {seconds:8.1f} {inherent:13.1f} {beyond:11.1f} {ratio:18.2f}")
            # Of a tied embedding there is a gradient for each sample, until its last use, which is its first one.
            allowed = options.samples if tied and variant in ("second", "element2") else 0
            worst = max(worst, ratio - allowed)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
