"""vocabulary: remove tokens, from the embedding and the output head to the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...ir import Indices, RequestError
from ...ir.options import option
from ...runtime.vocabulary.scripts import Scripts, script_names
from ...runtime.vocabulary.tokens import Tokens
from ..base import Pass, PassKind
from ..couple.tokens import compared_tokens, couple_tokens, token_places
from ..data import Calibration, is_inputs
from ..shrink.tokens_kept import configured_tokens, keep_tokens
from ..state import State
from .choice import Choice, Counts

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
        self._wanted()

    def _wanted(self) -> int | None:
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
        if state.ledger.decisions or state.ledger.plan is not None or state.ledger.written:
            raise RequestError(
                "vocabulary: the passes before it have read or removed something by the ids that the tokens have now",
                "write vocabulary first",
            )
        coupling, group = couple_tokens(state.subject.graph, state.subject.model)
        tokens = self._tokens(state)
        always = tokens.always | compared_tokens(coupling) | configured_tokens(state.subject.model)
        counts = None if self.languages is not None else self._counted(state, group.units)
        choice = Choice(tokens, frozenset(n for n in always if n < group.units), group.units)
        kept = self._chosen(choice, counts)
        state.ledger.report[self.name] = {
            "tokens": {"before": group.units, "after": len(kept)},
            "kept_always": len(choice.always),
            **({} if counts is None else {"on_the_text": counts.seen, "kept_of_the_text": counts.share(kept)}),
        }
        keep_tokens(state, coupling, group, kept)

    def _tokens(self, state: State) -> Tokens:
        tokenizer = state.host.tokenizer
        if tokenizer is None:
            raise RequestError(
                f"vocabulary: this {type(state.subject.model).__name__} has no tokenizer, which names the tokens",
                "leave the pass vocabulary out, or give a Hugging Face model with its tokenizer",
            )
        return Tokens.of(tokenizer)

    def _counted(self, state: State, rows: int) -> Counts:
        data = state.data.given(f"vocabulary{{keep={self.keep}}} needs")
        names = token_places(state.subject.graph, state.subject.model).arguments
        found = np.zeros(rows, dtype=np.int64)
        for ids in _read(data, names):
            found += np.bincount(ids[(ids >= 0) & (ids < rows)], minlength=rows)
        return Counts(found)

    def _chosen(self, choice: Choice, counts: Counts | None) -> Indices:
        if self.languages is not None:
            kept = choice.of_scripts(Scripts(script_names(self.languages)))
        else:
            assert counts is not None, "text was read"
            wanted = self._wanted()
            kept = choice.seen(counts) if wanted is None else choice.most_frequent(counts, wanted)
        kept = choice.rounded(kept, self.multiple_of, counts)
        if len(kept) == choice.rows:
            raise RequestError(f"vocabulary: nothing to remove: all {choice.rows:,} tokens stay", self._advice(choice))
        return kept

    def _advice(self, choice: Choice) -> str:
        if len(choice.always) == choice.rows:
            return "leave the pass out: every token is a special one, a byte, or the only one for its character"
        if self.multiple_of > 1:
            return "give a smaller multiple_of"
        return "give keep=tokens:N with a smaller N"


def _read(data: Calibration, names: Iterable[str]) -> Iterable[Indices]:
    """The ids in a text, or in inputs under these names."""
    if not is_inputs(data):
        yield data.tokens().numpy()
        return
    for row in data.rows(1 << 20):
        for name in names:
            if name in row and not row[name].is_floating_point():
                yield row[name].flatten().numpy()
