"""What a router sent to the experts of a mixture, in sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...data import Scores


@dataclass(frozen=True)
class RoutedTokens:
    """Sums over the tokens that a router sent to every expert of a mixture; all arrays are float64 ``[experts]``.

    Attributes:
        count: number of the tokens.
        norms, squares: sums of the L2 norms of the expert's outputs, without the router's weights, and of the squares
            of these norms.
        weighted: sum of the norms times the router's weights.
    """

    count: Scores
    norms: Scores
    squares: Scores
    weighted: Scores

    def mean(self, sums: Scores) -> Scores:
        """Sums divided by the number of tokens; 0 for an expert without any."""
        return np.divide(sums, self.count, out=np.zeros_like(sums), where=self.count > 0)
