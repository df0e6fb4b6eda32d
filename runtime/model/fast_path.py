"""The fast path of torch's attention and encoder layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Inside, ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` compute in one way.

    In evaluation mode without gradients torch may replace them by one fused operator each. It rounds otherwise, leaves
    zeros at padded positions, and is taken or not depending on who looks on: hooks, modes and traces switch it off. A
    graph stands for the layers themselves.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
