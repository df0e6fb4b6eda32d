"""Which tokens stay: what is asked for, what they are made from, and what no tokenizer can do without."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ...ir import Indices, RequestError
from ...runtime.vocabulary.scripts import Scripts
from ...runtime.vocabulary.tokens import Tokens


@dataclass(frozen=True)
class TokenCounts:
    """How often each token stands in a text.

    Attributes:
        each: int64 ``[rows]``.
    """

    each: Indices

    @property
    def seen(self) -> int:
        """How many tokens it uses."""
        return int(np.count_nonzero(self.each))

    def share(self, kept: Indices) -> float:
        """The share of the text that some tokens are."""
        return float(self.each[kept].sum() / max(int(self.each.sum()), 1))


@dataclass(frozen=True)
class Choice:
    """Chooses among the tokens of a model.

    Attributes:
        tokens: the tokens.
        always: the ids that stay, whatever is asked for.
        rows: of the embedding; there may be more than tokens.
    """

    tokens: Tokens
    always: frozenset[int]
    rows: int

    def seen(self, counts: TokenCounts) -> Indices:
        """The tokens of a text."""
        return self._with_parts(np.flatnonzero(counts.each).tolist())

    def most_frequent(self, counts: TokenCounts, wanted: int) -> Indices:
        """``wanted`` tokens: those that always stay, then the most frequent ones of a text; of equally frequent ones
        those with lower ids, which tokenizers learn first.

        Raises:
            RequestError: there are not so many, or more have to stay.
        """
        if wanted > self.rows:
            raise RequestError(
                f"vocabulary: keep=tokens:{wanted} asks for more than the {self.rows:,} tokens that the model has",
                f"give a number below {self.rows}",
            )
        if wanted < len(self.always):
            raise RequestError(
                f"vocabulary: keep=tokens:{wanted} is too few: {len(self.always):,} tokens always stay (special and "
                "added ones, bytes, single characters)",
                f"give at least {len(self.always)}",
            )
        return self._filled(set(self.always), wanted, counts)

    def of_scripts(self, scripts: Scripts) -> Indices:
        """The tokens of which each character is of some scripts.

        Raises:
            RequestError: there are none, apart from those that stay whatever is asked for.
        """
        named = {number: self.tokens.text(number) for number in self.tokens.names if number < self.rows}
        if not any(scripts.write(text) for number, text in named.items() if number not in self.always):
            raise RequestError(
                f"vocabulary: no token of more than one character is written in {'+'.join(scripts.names)}",
                "name the scripts of the text that the model shall read",
            )
        return self._with_parts(number for number, text in named.items() if scripts.hold(text))

    def rounded(self, kept: Indices, multiple: int, counts: TokenCounts | None) -> Indices:
        """As many more tokens as make their number a multiple, the most frequent ones first; never more than all."""
        wanted = min(math.ceil(len(kept) / multiple) * multiple, self.rows)
        return self._filled(set(kept.tolist()), wanted, counts)

    def _with_parts(self, ids: Iterable[int]) -> Indices:
        return np.array(sorted(self.always | self.tokens.with_parts(ids)), dtype=np.int64)

    def _filled(self, found: set[int], wanted: int, counts: TokenCounts | None) -> Indices:
        """Add tokens with what they are made from. One that would be too much waits for those that it is made from."""
        before = -1
        while before != len(found) < wanted:
            before = len(found)
            for number in self._by_frequency(counts):
                more = self.tokens.with_parts([number]) - found
                if len(found) + len(more) <= wanted:
                    found |= more
                if len(found) == wanted:
                    break
        return np.array(sorted(found), dtype=np.int64)

    def _by_frequency(self, counts: TokenCounts | None) -> Iterator[int]:
        """All ids, the most frequent first; rows that no token has come last."""
        named = np.isin(np.arange(self.rows), list(self.tokens.names))
        each = np.zeros(self.rows, dtype=np.int64) if counts is None else counts.each
        yield from np.lexsort((np.arange(self.rows), -each, ~named)).tolist()
