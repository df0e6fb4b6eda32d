"""What a model keeps of the tokens that it has read, as a graph that returns it."""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Graph

POSITIONS = -2
"""The dimension of keys and values that counts positions: they are ``[batch, heads, positions, width]``."""


@dataclass(frozen=True)
class CacheGraph:
    """A graph whose outputs are the tensors of a key-value cache.

    Attributes:
        graph: the model with its cache as the result. Its parameters have the names that they have in the model.
        lengths: for every output, how many positions of a context it holds in dimension ``POSITIONS``: all of them, or
            those of a window; None where no dimension is one of positions alone, such as in the state of a recurrence.
    """

    graph: Graph
    lengths: tuple[int | None, ...]
