"""vocabulary: remove tokens, from the embedding and the output head to the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.errors import RequestError
from ...ir.options import option
from ...runtime.vocabulary.scripts import Scripts, script_names
from ..base import Pass, PassKind

if TYPE_CHECKING:
    from ..state import State

OF_THE_TEXT = "text"
MOST_FREQUENT = "tokens:"


@dataclass(frozen=True, kw_only=True)
class FewerTokens(Pass):
    """Remove tokens: rows of the embedding and the output head, entries of the tokenizer, ids in configurations.

    Text whose tokens stay is written with the same tokens, and their logits are the same; other text is written with
    smaller tokens.
    """

    name: ClassVar[str] = "vocabulary"
    kind: ClassVar[PassKind] = PassKind.SCORE
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    needs_weights: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    writes_text: ClassVar[bool] = True

    keep: str = option(
        OF_THE_TEXT, "text: the tokens that the calibration text uses; tokens:N: the N most frequent ones on it"
    )
    languages: str | None = option(
        None, "scripts of Unicode, such as latin+greek: keep the tokens whose characters are all of these scripts, or "
        "shared by all scripts as digits and signs are; reads no text", replaces="keep"
    )  # fmt: skip
    multiple_of: int = option(
        1, "round the number of tokens up to a multiple of this", at_least=1,
        hint="use 1 for no constraint, or 8, 64, ...",
    )  # fmt: skip

    def check(self) -> None:
        """Also refuse a choice that cannot be read."""
        super().check()
        if self.languages is not None:
            Scripts(script_names(self.languages))
        self.wanted()

    def wanted(self) -> int | None:
        """The number of tokens that is asked for; None where it follows from the text."""
        if self.keep == OF_THE_TEXT:
            return None
        number = self.keep.removeprefix(MOST_FREQUENT)
        if self.keep.startswith(MOST_FREQUENT) and number.isdecimal() and int(number):
            return int(number)
        raise RequestError(f"vocabulary: keep={self.keep} cannot be read", "write keep=text or keep=tokens:32000")

    def run(self, state: State) -> None:
        """Choose the tokens that stay, and remove the others everywhere.

        Raises:
            RequestError: after a pass that read or removed something; without a tokenizer, or with one of which
                nothing is known; without text where one is needed; where no token can go, or all would stay.
        """
        from .removal import remove_tokens

        remove_tokens(self, state)
