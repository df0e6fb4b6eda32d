"""frequency: remove the experts that the router picks least often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .expert_pass import ExpertScored

if TYPE_CHECKING:
    from ...data import Scores
    from .routed_tokens import RoutedTokens


@dataclass(frozen=True, kw_only=True)
class Frequency(ExpertScored):
    """Remove whole experts to which the router sends the fewest tokens."""

    name: ClassVar[str] = "frequency"

    def importance(self, tokens: RoutedTokens) -> Scores:
        """The number of tokens."""
        return tokens.count
