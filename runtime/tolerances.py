"""How far two results that should be one may be apart: every such number of the package, with its why.

Differences are relative to the largest absolute value of the reference unless a line says otherwise. Two correct
programs differ by the order in which they add, and each addition rounds at the ``eps`` of the dtype: 6e-8 in float32,
1e-16 in float64. What is wrong differs by more than 1e-2: a slice, a mask, a position.
"""

from __future__ import annotations

import torch

LOGITS_TOLERANCE = 1e-5
"""Float32 logits of the same operators: a network of ten to a hundred layers accumulates a few dozen roundings."""

FUNCTION_TOLERANCE = 1e-4
"""Float32 outputs of two programs for one function, such as a module and its graph: some thousand roundings."""

_FLOAT64 = 1e-10
"""In float64 roundings of the dtype vanish beside the constants that code states in float32 digits."""

_COARSE = 0.05
"""Where the dtype itself resolves a hundredth: bfloat16, float16, and integers."""

ONNX_LOGITS_TOLERANCE = 1e-3
"""Absolute, of a float32 logit, in ONNX Runtime: its fused operators add in another order, in models of any size."""

GGUF_LOGITS_TOLERANCE = 0.02
"""Absolute, of a log-probability in llama.cpp from float32 weights: it looks GELU up in a table of float16 numbers."""

ONNX_OUTPUT_TOLERANCE = {"float32": FUNCTION_TOLERANCE, "float16": 0.02, "int8": 0.05, "int4": 0.5}
"""By what the weights of an ONNX graph are rounded to. The coarse ones are what rounding to so many bits may cost, not
what is good."""

BLOCK_TOLERANCE = LOGITS_TOLERANCE
"""What a block gives after predecessors whose outputs were kept and after computed ones: the same operators."""

LOSS_ROUNDINGS = 64
"""A loss from its own logits: the mean of a few thousand terms, computed in two ways."""

REORDERED_ROUNDINGS = 256
"""A gradient whose rows were scaled by powers of two, which is exact: what is left is a sum that a kernel reorders."""

MERGED_ROUNDINGS = 200
"""Outputs of a projection before and after its adapter was folded into its weight, on the same inputs: every weight is
rounded once, and the sums are taken in another order. At most 10 were seen."""

STORED_ROUNDINGS = 16
"""Logits of one model in a dtype coarser than float32, built twice."""


def roundings(count: int, dtype: torch.dtype) -> float:
    """So many roundings of a floating-point dtype, relative to the number that is rounded."""
    return count * torch.finfo(dtype).eps


def half_the_digits(dtype: torch.dtype) -> float:
    """That half the digits agree: for matrix products whose shapes differ, which round quite differently."""
    return float(torch.finfo(dtype).eps ** 0.5)


def same_program(dtype: torch.dtype) -> float:
    """The most that a program may differ from itself written and read back: the same operators."""
    return {torch.float64: _FLOAT64, torch.float32: LOGITS_TOLERANCE}.get(dtype, _COARSE)


def same_function(dtype: torch.dtype) -> float:
    """The most that two programs for one function may differ: other operators."""
    return {torch.float64: _FLOAT64, torch.float32: FUNCTION_TOLERANCE}.get(dtype, _COARSE)


def relative_difference(got: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest absolute difference, divided by the largest absolute reference value; infinite if shapes differ."""
    if got.shape != reference.shape:
        return float("inf")
    if torch.equal(got, reference):
        return 0.0
    difference = (got.double() - reference.double()).abs().max() / reference.double().abs().max()
    return float(difference) if torch.isfinite(difference) else float("inf")
