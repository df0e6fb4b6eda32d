"""What a turn decides: which linear maps may give values that are narrower than the heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...ir.errors import FxpruneError
from ...runtime.model.held_values import MAKES, READS, held_values, hold_values
from ..state import State


@dataclass(frozen=True)
class ValuesHeld:
    """The linear maps whose values may become narrower than the heads.

    Attributes:
        values: path of a module -> what it does with the values, and the width of a head.
    """

    name: ClassVar[str] = "values"

    values: Mapping[str, tuple[str, int]]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"values": {path: list(held) for path, held in self.values.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ValuesHeld:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for other data.
        """
        found = {}
        for path, held in data["values"].items():
            does, width = held
            if does not in (MAKES, READS) or type(width) is not int or width < 1:
                raise ValueError(f"what {path} does with values is not described")
            found[path] = (does, width)
        return cls(found)

    def redo(self, state: State) -> None:
        """Let them be narrowed again; their weights are left.

        Raises:
            FxpruneError: when the model has no such modules.
        """
        paths = {path for path, _ in state.subject.model.named_modules() if path}
        if missing := sorted(self.values.keys() - paths):
            raise FxpruneError(f"the model has no module {missing[0]}")
        held = held_values(state.subject.model)  # by an earlier turn
        hold_values(state.subject.model, {path: how for path, how in self.values.items() if path not in held})
