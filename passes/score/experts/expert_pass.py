"""The base of reap, activation_norm and frequency: scores of whole experts from the tokens that a router sends them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ....ir.errors import RequestError
from ....ir.options import option
from ...prune import HEAD_CHOICES
from ..consumer_pass import ConsumerScored

if TYPE_CHECKING:
    from ....ir.groups import Group
    from ...data import Scores
    from ...state import State
    from .routed_tokens import RoutedTokens


@dataclass(frozen=True, kw_only=True)
class ExpertScored(ConsumerScored):
    """A pruning pass that removes whole experts, scored by the tokens that a router sends them. What is left is picked
    and weighted among itself, as the router's own code does it."""

    heads: str = option("off", "only off: these scores are for whole experts", HEAD_CHOICES)
    ffn: bool = option(False, "only false: these scores are for whole experts")
    experts: bool = option(True, "only true: these scores are for whole experts")

    needs_gates: ClassVar[bool] = False

    def check(self) -> None:
        """Also refuse kinds of units that are no experts."""
        super().check()
        if self.heads != "off" or self.ffn or not self.experts:
            raise RequestError(
                f"{self.name} scores whole experts only, not heads={self.heads}, ffn={str(self.ffn).lower()}, "
                f"experts={str(self.experts).lower()}",
                f"leave the three options out, and give heads and widths to another pass: {self.name},fisher",
            )

    @abstractmethod
    def importance(self, tokens: RoutedTokens) -> Scores:
        """The score of every expert of a mixture, float64 ``[experts]``."""

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward pass over the calibration data. Where experts come in groups of which a router
        picks some, a unit that stands for several experts has the sum of their scores.

        Raises:
            RequestError: without calibration data; for units that are no experts; for experts that all run on all
                tokens; or, where the score needs them, without weights of a router.
            FxpruneError: for outputs that are not finite.
        """
        from .routed_outputs import routed_scores

        return routed_scores(self, groups, state)
