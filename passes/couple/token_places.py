"""Where a graph has tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Value

TOKEN_LABELS = "labels"
"""The argument that holds what a model shall give."""


@dataclass(frozen=True)
class TokenPlaces:
    """Where a graph has an axis of tokens, which outlast the numbers that they have.

    Attributes:
        tables: parameters with a row for every token that is read.
        heads: parameters with a row for every token that is scored.
        inputs: the inputs that hold numbers of tokens.
    """

    tables: tuple[Value, ...]
    heads: tuple[Value, ...]
    inputs: tuple[Value, ...]

    @property
    def arguments(self) -> frozenset[str]:
        """The names of arguments of the model that hold numbers of tokens: its labels too, if it scores tokens."""
        return frozenset(value.name for value in self.inputs) | ({TOKEN_LABELS} if self.heads else frozenset())
