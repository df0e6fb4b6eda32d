"""The table of docs/scale.md: what of a Llama of some size runs on some machine, computed from shapes.

    python -m fxprune.benchmarks.scale.scale_table

Weights, blocks, gradients and activations are counted as ``apply`` counts them when it decides where a model runs. What
a pass holds beside them is added: its hidden states and second moments. Nothing is run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fxprune.runtime.place.needs import Needs, needs_of

GEOMETRIES = {
    "1B": {
        "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8B": {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "70B": {
        "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
"""Of Llama 3."""

GB = 1e9
TAYLOR, REFIT = (1, 128, 10), (8, 128, 16)
"""Sequences in a forward pass, tokens in each, and passes: of ``taylor``, and of ``wanda,compensate``."""


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        name: for the table.
        free: of the memory that computes.
        host: free memory of the host for one process; the same where it computes.
        cards: whether it has an accelerator.
    """

    name: str
    free: float
    host: float
    cards: bool


MACHINES = (
    Machine("laptop, 8 GB", 6 * GB, 6 * GB, False),
    Machine("one card of 24 GB, host 32 GB", 23 * GB, 28 * GB, True),
    Machine("one card of 80 GB, host 256 GB", 79 * GB, 240 * GB, True),
    Machine("four cards of 80 GB, host 1 TB", 79 * GB, 240 * GB, True),
)


def needs(size: str, dtype: torch.dtype, forward: tuple[int, int, int]) -> Needs:
    """What a model needs, with weights in bfloat16 in its files."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**GEOMETRIES[size]))
    batch, length, _ = forward
    return needs_of(
        model, list(model.model.layers), dtype=dtype, stored=torch.bfloat16, batch=batch, length=length,
        vocabulary=GEOMETRIES[size]["vocab_size"],
    )  # fmt: skip


def beside(size: str, dtype: torch.dtype, forward: tuple[int, int, int], refit: bool) -> float:
    """Bytes that a pass holds beside weights: of ``taylor`` hidden states at every block; of a refit those of both
    models at one block, the second block, and the second moments of the widest map in float64."""
    shape, (batch, length, passes) = GEOMETRIES[size], forward
    states = batch * length * passes * shape["hidden_size"] * dtype.itemsize
    if not refit:
        return states * shape["num_hidden_layers"]
    wide, narrow = shape["intermediate_size"], shape["hidden_size"]
    return 2 * 2 * states + needs(size, dtype, forward).largest_block + 8 * (wide * wide + 2 * wide * narrow)


def cell(size: str, machine: Machine, forward: tuple[int, int, int], *, refit: bool) -> str:
    """Flags and memory of a pass."""
    last = "too large"
    for dtype in (torch.bfloat16,) if machine.cards else (torch.float32, torch.bfloat16):
        own, extra = needs(size, dtype, forward), beside(size, dtype, forward, refit)
        named = "" if machine.cards or dtype == torch.float32 else "`--dtype bfloat16`, "
        whole = own.weights + own.beside + extra
        least = own.outside + own.largest_block + own.activations + own.logits + extra
        least += 0 if refit else own.largest_gradient
        if whole <= machine.free:
            return f"{named}all in memory: {whole / GB:.1f} GB"
        if least <= machine.free:
            waits = own.stored + (0 if machine.cards else least) <= machine.host
            return f"{named}`--offload {'memory' if waits else 'disk'}`: {least / GB:.1f} GB"
        last = f"no: {least / GB:.1f} GB"
    return last


def main() -> None:
    for title, forward, refit in (("taylor", TAYLOR, False), ("wanda,compensate", REFIT, True)):
        print(f"| `{title}` | " + " | ".join(machine.name for machine in MACHINES) + " |")
        print("|---" * (len(MACHINES) + 1) + "|")
        for size in GEOMETRIES:
            print(f"| {size} | " + " | ".join(cell(size, one, forward, refit=refit) for one in MACHINES) + " |")
        print()


if __name__ == "__main__":
    main()
