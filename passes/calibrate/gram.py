"""Sums of outer products over tokens, in float64, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ROWS = 1024
"""Tokens of one product. Only products round at the precision of :func:`product_dtype`, the sum over them is float64:
more calibration text does not make it worse."""

COLUMNS = 512
"""Columns of a panel of a product, so that no second matrix of the size of the sum is needed. The panels of a symmetric
product skip what lies below them, nearly half of the work."""


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Inside, matrix products keep the precision of their operands: no TF32, no bfloat16, no autocast."""
    settings: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def product_dtype(device: torch.device) -> torch.dtype:
    """The precision of products: float64 on a CPU, float32 on an accelerator.

    On a CPU float64 takes twice the time of float32, on many accelerators 32 to 64 times, if it is there at all. A
    refit from float32 products differs by about 1e-9 times the condition of its moments, 1e-6 to 1e-5 in a trained
    model with damping 0.01; float64 products leave the rounding of the activations, 4e-7.
    """
    return torch.float64 if device.type == "cpu" else torch.float32


def add_gram(total: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> None:
    """Add ``rows^T rows`` to a symmetric matrix, at and above its diagonal only.

    Args:
        total: float64 ``[k, k]``, on any device. What lies below the diagonal is not settled: see :func:`symmetric`.
        rows: ``[T, k]``.
        dtype: precision of products; :func:`product_dtype` when None.
    """
    dtype = dtype or product_dtype(rows.device)
    with full_products(rows.device):
        for part in rows.split(ROWS):
            given = part.to(dtype)
            for first in range(0, given.shape[1], COLUMNS):
                product = given[:, first : first + COLUMNS].T @ given[:, first:]
                total[first : first + COLUMNS, first:].add_(product.to(total.device))


def add_products(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype | None = None) -> None:
    """Add ``left^T right`` to a matrix.

    Args:
        total: float64 ``[n, k]``, on any device.
        left: ``[T, n]``.
        right: ``[T, k]``.
        dtype: precision of products; :func:`product_dtype` when None.
    """
    dtype = dtype or product_dtype(right.device)
    with full_products(right.device):
        for a, b in zip(left.split(ROWS), right.split(ROWS), strict=True):
            given = b.to(dtype)
            for first in range(0, a.shape[1], COLUMNS):
                product = a[:, first : first + COLUMNS].to(dtype).T @ given
                total[first : first + COLUMNS].add_(product.to(total.device))


def symmetric(total: Tensor) -> Tensor:
    """The whole matrix of one that is settled at and above its diagonal, ``[k, k]``; in place."""
    total.triu_().add_(total.triu(1).T)
    return total
