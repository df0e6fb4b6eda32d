"""Which of many parts go, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...runtime.reporting import counted

Chosen = tuple[list[int], list[float]]
"""Indices of the parts that go, in the order in which they were chosen, and a score of each choice or part."""


def one_after_the_other(parts: int, count: int, cost: Callable[[Sequence[int]], float]) -> Chosen:
    """Each time the part without which, and without those before it, the cost is lowest; the first where several are.

    Args:
        parts: how many there are.
        count: how many go, fewer than there are.
        cost: without the parts of these indices.

    Returns:
        The indices, and the cost that was reached with each.
    """
    gone: list[int] = []
    costs: list[float] = []
    for _ in counted(range(count), "removals"):
        values = {index: cost([*gone, index]) for index in range(parts) if index not in gone}
        best = min(values, key=lambda index: (values[index], index))
        gone.append(best)
        costs.append(values[best])
    return gone, costs
