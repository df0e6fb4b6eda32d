"""generate: the model writes its own calibration text, for users who have little text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.options import option, seed_option
from ..base import Pass, PassKind

if TYPE_CHECKING:
    from ..state import State


@dataclass(frozen=True, kw_only=True)
class Generate(Pass):
    """Add windows that the dense model writes to the calibration text, for all following passes.

    Tokens are sampled from the model's predictions; the first token of a window is uniform over the vocabulary
    (LLM-QAT, arXiv 2305.17888, section 3.1; for pruning Williams et al., arXiv 2410.17170). The text that a model
    writes resembles its training text, so that it can replace calibration text that the user lacks. Tokens are written
    one by one, so that a model whose weights are not in memory is read once for every token of a batch.
    """

    name: ClassVar[str] = "generate"
    kind: ClassVar[PassKind] = PassKind.ANALYSIS
    reads_text: ClassVar[bool] = True
    writes_text: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    windows: int = option(256, "number of windows that the model writes", at_least=1)
    length: int = option(128, "tokens in a window", at_least=2)
    first: int = option(10, "windows of the --calib text to put before them, if there is one", at_least=0)
    seed: int = seed_option(0, "random seed of the sampling")
    batch: int = option(64, "windows written in one batch", at_least=1)

    def run(self, state: State) -> None:
        """Write text, and add it to the calibration text of the state.

        Raises:
            RequestError: after a pruning pass, because the text must come from the dense model; for a module that is
                not a causal language model of transformers.
            FxpruneError: for logits that are not finite.
        """
        from .written_text import add_text

        add_text(self, state)
