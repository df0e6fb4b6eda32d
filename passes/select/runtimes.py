"""What the kernels of a runtime need of widths, heads and experts: counts that a pruned model should keep to."""

from __future__ import annotations

from dataclasses import dataclass

AS_NEEDED = "auto"
"""In place of a number: what the named runtime needs."""

DEFAULT_MULTIPLE = 32
"""Where no runtime is named: blocks of 32 columns are what GGUF's q8_0 and q4_0, ONNX's and torchao's int4 share."""


@dataclass(frozen=True)
class Runtime:
    """What a runtime needs.

    Attributes:
        columns: widths, and what all heads take together, are multiples of this.
        heads: counts of heads, or of kv heads, are multiples of this.
        experts: the counts of experts that its kernels are built for; any when empty.
        why: in a few words.
    """

    columns: int
    heads: int = 1
    experts: tuple[int, ...] = ()
    why: str = ""


RUNTIMES: dict[str, Runtime] = {
    "gguf-q8": Runtime(32, why="q8_0 and q4_0 round blocks of 32 columns (ggml, QK8_0)"),
    "gguf-k": Runtime(256, why="K-quants round blocks of 256 columns (ggml, QK_K)"),
    "torchao-int4": Runtime(32, why="the smallest groups of int4 weights have 32 columns"),
    "tensor-cores": Runtime(64, why="128 bytes of a 16-bit type, the tile that an A100 is quickest with"),
    "tp4": Runtime(128, heads=4, why="four equal parts, each in blocks of 32 columns"),
    "vllm": Runtime(
        128, experts=(1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 576),
        why="Marlin kernels take 128 columns at a time (GPTQ_MARLIN_MIN_THREAD_K); router kernels are built for some "
        "counts of experts only (vLLM 0.26, topk_softplus_sqrt_kernels.cu)",
    ),
}  # fmt: skip
"""By the name that ``--for`` takes."""
