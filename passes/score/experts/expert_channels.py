"""expert_channels: remove from every expert of a mixture its own worst channels, equally many from each."""

from __future__ import annotations

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

REORDERED = "reordered"
"""In the report of a pass: the groups whose channels it reordered, so that its plan does not say which ones went."""


@dataclass(frozen=True, kw_only=True)
class ExpertChannels(ConsumerScored):
    """Remove from every expert its own worst channels, equally many from each; other widths lose theirs as well.

    The experts of a mixture are stacks of weights, from which a channel is cut in all experts at once. The order of
    channels within an expert has no meaning. So each expert's channels are put in the order of their scores first, and
    then the last ones are cut. Let ``s_t`` be the derivative of the loss by a mask of the channel at token ``t``:
    ``fisher`` takes ``1/(2N) * sum of s_t**2``, as the pass of that name, and ``taylor`` ``|sum of s_t|``, the vector
    term of LLM-Pruner (arXiv 2305.11627) of the weight that reads the channel. HEAPr (ICLR 2026) also scores channels
    of single experts.
    """

    name: ClassVar[str] = "expert_channels"
    keeps_values: ClassVar[bool] = False
    takes_loss: ClassVar[bool] = True

    by: str = option("uniform", "only uniform: every expert loses as many", ("uniform",))
    score: str = option("fisher", "fisher: squared derivatives by a mask; taylor: their sum", ("fisher", "taylor"))
    heads: str = option("off", "only off: these scores are for inner widths", HEAD_CHOICES)

    def check(self) -> None:
        """Also refuse units that are no channels of experts."""
        super().check()
        if self.heads != "off" or self.experts or not self.ffn:
            raise RequestError(
                f"{self.name} is for inner widths only, not heads={self.heads}, experts={str(self.experts).lower()}, "
                f"ffn={str(self.ffn).lower()}",
                f"leave the three options out, and give heads and experts to another pass: reap,{self.name}",
            )

    @property
    def compares(self) -> bool:
        """All scores are changes of one loss."""
        return True

    def run(self, state: State) -> None:
        """Reorder the channels of every expert, then score, select, rewrite and shrink.

        Raises:
            RequestError: for a model without experts that have channels of their own; without calibration data.
            FxpruneError: for a loss or scores that are not finite.
        """
        from .channel_orders import reorder_channels

        groups = reorder_channels(self, state)
        super().run(state)
        state.ledger.report[self.name][REORDERED] = [group.name for group in groups]

    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """Importance from one forward and one backward pass over the calibration data: the sum over all experts.

        Raises:
            RequestError: without calibration data, or for a group whose units no linear map reads.
            FxpruneError: for a loss that is not finite.
        """
        from .channel_orders import channel_scores

        return channel_scores(self, groups, state)
