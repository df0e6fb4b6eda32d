"""drop: remove whole layers, or the attention and MLP sub-blocks of layers, that matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.errors import RequestError
from ...ir.options import option, seed_option
from ..base import Pass, PassKind

if TYPE_CHECKING:
    from ..state import State

ACCEPTANCE = "acceptance"
CRITERIA = ("influence", "perplexity", ACCEPTANCE)
ATTENTION = "attention"
MLP = "mlp"
ANY = "any"


@dataclass(frozen=True, kw_only=True)
class Drop(Pass):
    """Remove whole layers, or attention and MLP sub-blocks of layers, that change the hidden states or the loss least.

    By block influence (ShortGPT, arXiv 2403.03853), or greedily by perplexity, or for a draft of the same model by the
    share of its tokens that the model accepts (speculative decoding, arXiv 2211.17192).
    """

    name: ClassVar[str] = "drop"
    kind: ClassVar[PassKind] = PassKind.SCORE
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    reads_text: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    layers: int | None = option(None, "number of layers to remove; 1 when sub_blocks is none too", at_least=0)
    sub_blocks: int | None = option(
        None, "number of attention or MLP sub-blocks to remove, after the layers", at_least=0
    )
    of: str = option(ANY, "which sub-blocks may be removed", (ANY, ATTENTION, MLP))
    by: str = option(
        "influence", "influence: one forward pass; perplexity: greedy, one removal at a time; acceptance: likewise, by "
        "the share of its tokens that the model as it was would accept from it as a draft", CRITERIA
    )  # fmt: skip
    samples: int = option(10, "calibration windows", at_least=1)
    length: int = option(
        128, "tokens in a calibration window", at_least=2, hint="a window of one token holds nothing to predict"
    )
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")

    def check(self) -> None:
        """Also refuse a choice among sub-blocks of which none go."""
        super().check()
        if self.of != ANY and not self.sub_blocks:
            raise RequestError(f"drop: of={self.of} has no effect without sub_blocks", "give sub_blocks=N too")

    def run(self, state: State) -> None:
        """Choose what to remove, remove it, trace the model again.

        Raises:
            RequestError: without calibration text, when nothing would be left, or for layers after sub-blocks.
            FxpruneError: for scores that are not finite, or when no configuration describes the new depth.
        """
        from .choice import drop

        drop(self, state)
