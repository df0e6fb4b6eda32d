"""activation_norm: remove the experts with the smallest outputs, whatever the router's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ....ir.options import option
from .expert_pass import ExpertScored

if TYPE_CHECKING:
    from ...data import Scores
    from .routed_tokens import RoutedTokens


@dataclass(frozen=True, kw_only=True)
class ActivationNorm(ExpertScored):
    """Remove whole experts with the smallest mean norm of their outputs (MAN and MSAN, arXiv 2606.15716).

    The mean is over the tokens that the router sends to an expert, without the router's weights.
    """

    name: ClassVar[str] = "activation_norm"

    moment: str = option("norm", "norm: mean of |f|_2; square: mean of its square", ("norm", "square"))

    def importance(self, tokens: RoutedTokens) -> Scores:
        """Mean over the expert's own tokens."""
        return tokens.mean(tokens.norms if self.moment == "norm" else tokens.squares)
