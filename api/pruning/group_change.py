"""What a group of units lost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GroupChange:
    """A group from which units were removed.

    Attributes:
        name, kind, layer: of the group.
        before, after: number of its units; of a nested group, summed over all units of its parent.
    """

    name: str
    kind: str
    layer: int | None
    before: int
    after: int

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return dataclasses.asdict(self)
