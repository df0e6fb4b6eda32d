"""The number of threads that torch uses within one operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[int]:
    """One, for work that is too little to share or is shared out otherwise: threads would wait for one another longer
    than they work. Yields how many there are elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
