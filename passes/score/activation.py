"""activation: remove the units with small activations."""

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
class Activation(ConsumerScored):
    """Remove the units with the smallest activations (Minitron, arXiv 2407.14679, section 2.2).

    At a token, the size of a unit is the L2 norm of its channels (for one channel, its absolute value). These sizes are
    averaged over the tokens of a window; the score is the L2 norm of the averages over all windows. Where several
    linear maps read the same units, their scores are added.
    """

    name: ClassVar[str] = "activation"

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward pass over the calibration data.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for activations that are not finite.
        """
        from .activation_sizes import activation_scores

        return activation_scores(self, groups, state)
