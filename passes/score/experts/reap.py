"""reap: remove the experts with the smallest router-weighted outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .expert_pass import ExpertScored

if TYPE_CHECKING:
    from ...data import Scores
    from .routed_tokens import RoutedTokens


@dataclass(frozen=True, kw_only=True)
class Reap(ExpertScored):
    """Remove whole experts with the smallest mean of ``g * |f|_2`` (REAP, arXiv 2510.13999, equation 9).

    ``f`` is the expert's output and ``g`` the router's weight for it, at the tokens that the router sends there.
    """

    name: ClassVar[str] = "reap"
    needs_gates: ClassVar[bool] = True

    def importance(self, tokens: RoutedTokens) -> Scores:
        """Mean over the expert's own tokens."""
        return tokens.mean(tokens.weighted)
