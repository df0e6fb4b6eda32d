"""fisher: remove the units with the smallest Fisher information, from squared gradients of on/off masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .consumer_pass import ConsumerScored

if TYPE_CHECKING:
    from ...ir.groups import Group
    from ..data import Scores
    from ..state import State


@dataclass(frozen=True, kw_only=True)
class Fisher(ConsumerScored):
    """Remove the units whose removal raises the loss least, to second order, with the Fisher information as Hessian.

    Every unit has a mask at every token, 1 when it is on. Let ``s_tu`` be the derivative of the summed loss by this
    mask: the sum of ``x * dL/dx`` over the unit's channels, at the inputs of its consumers. The score is
    ``1/(2N) * sum over t of s_tu**2`` in nats per token, with ``N`` predictions (diagonal Fisher information of masks:
    Kwon et al., arXiv 2204.09656, section 3.2, here per token instead of per sample). All scores are changes of one
    loss, so scores of different groups can be compared.
    """

    name: ClassVar[str] = "fisher"

    @property
    def compares(self) -> bool:
        """All scores are changes of one loss."""
        return True

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward and one backward pass over the calibration data, without weight gradients.

        Raises:
            RequestError: without calibration data, for windows of fewer than 2 tokens, or for a group whose units no
                linear map reads.
            FxpruneError: for a loss that is not finite.
        """
        from .fisher_masks import fisher_scores

        return fisher_scores(self, groups, state)
