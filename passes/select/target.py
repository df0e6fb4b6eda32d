"""target: the budget of a whole model as the user gives it, and the ways to distribute it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir.errors import RequestError

UNIFORM = "uniform"
WAYS = (UNIFORM, "kinds", "global", "search")
BUDGET_TOLERANCE = 0.005
"""Largest relative difference between the cost of a plan and its budget, where nothing else is said."""

LATENCY = "latency"
MEASURES = ("params", "bytes", "macs", LATENCY)


@dataclass(frozen=True)
class Target:
    """The budget of a model: a measure and a value.

    Attributes:
        measure: ``params``, ``bytes``, ``macs`` or ``latency``.
        value: below 1, a share of the cost before any pass; above 1, an amount.
    """

    measure: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``params=0.8`` or ``params:0.8``.

        Raises:
            RequestError: for an unknown measure, or a value that is neither a share nor an amount.
        """
        measure, _, number = text.replace(":", "=", 1).partition("=")
        if measure not in MEASURES:
            raise RequestError(f"target {text!r} has no measure", f"use {', '.join(f'{m}=0.8' for m in MEASURES)}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf or value == 1:
            raise RequestError(
                f"target {text!r} needs a share between 0 and 1, or an amount above 1",
                f"{measure}=0.8 keeps 80 percent; {measure}=5e9 is an amount; inside a pipeline write {measure}:0.8",
            )
        if measure == LATENCY and value > 1:
            raise RequestError(
                f"target {text!r} is not a share; latency takes a share only, because times differ between machines",
                "give a share of the time that the model takes on this machine: latency=0.8",
            )
        if measure == "bytes" and value > 1:
            raise RequestError(
                f"target {text!r} is an amount; bytes takes a share only, because files keep the dtype of the source",
                "give a share, bytes=0.8, or a number of parameters, params=5e9",
            )
        if value > 1 and value != int(value):
            raise RequestError(
                f"target {text!r} is above what the model has as a share, and no whole number as an amount",
                f"{measure}=0.8 keeps 80 percent",
            )
        return cls(measure, value)

    def __str__(self) -> str:
        return f"{self.measure}={self.value:g}"

    def amount(self, dense: int) -> int:
        """The budget as an amount, for a model whose dense cost is ``dense``."""
        return round(self.value * dense) if self.value < 1 else round(self.value)
