"""What the kernels of a runtime need of widths, heads and experts: counts that a pruned model should keep to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...ir.groups import HEAD_KINDS, Group, Kind, Role
from .select import kept_count

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


def aligned(groups: Iterable[Group], name: str | None, share: float | None) -> list[Group]:
    """The groups with the multiples of heads and experts that a runtime needs; widths follow ``multiple_of``.

    Args:
        groups: those that are cut.
        name: of the runtime; None for any.
        share: of the units that is to go, where it is known.
    """
    if name is None:
        return list(groups)
    need = RUNTIMES[name]
    return [replace(group, multiple=math.lcm(group.multiple, _multiple(group, need, share))) for group in groups]


def _multiple(group: Group, need: Runtime, share: float | None) -> int:
    if group.kind in HEAD_KINDS:
        together = group.parent.size if group.parent is not None else 1
        columns = [m.axis.size // group.units * together for m in group.members if m.role is Role.IN]
        found = [need.columns // math.gcd(need.columns, each) for each in columns]
        return min(group.size, math.lcm(*found, need.heads if group.parent is None else 1))
    if group.kind is Kind.EXPERTS and need.experts:
        parents = group.parent.size if group.parent is not None else 1
        least = kept_count(group.size, 0.5 if share is None else share, 1, group.minimum)
        known = (count for count in range(least, group.size) if parents * count in need.experts)
        return next(known, group.size)
    return 1


def remarks_on_runtime(before: Iterable[Group], groups: Iterable[Group], name: str | None) -> list[str]:
    """What a runtime holds whole, for the user: before and after :func:`aligned`, in the same order."""
    whole = [group for old, group in zip(before, groups, strict=True) if group.size == group.multiple > old.multiple]
    first = {group.kind.value: group.name for group in reversed(whole)}
    return [f"runtime={name} leaves {kind} whole, such as {first[kind]}" for kind in sorted(first)]
