"""The values that options of scores may have."""

from __future__ import annotations

TAYLOR_TERMS = ("vector", "element1", "second", "element2")
"""What a Taylor score is made of, as in :mod:`~.gradients.taylor_terms`."""

REDUCTIONS = ("sum", "mean", "max", "prod", "first", "last")
"""How the scores of a group's tensors become one, as in :func:`~.units.unit_scores`."""
