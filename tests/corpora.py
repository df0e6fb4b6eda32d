"""What passes read in tests for calibration and recovery: tokens that no tokenizer made, and a tokenizer of words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from fxprune.runtime.model.training_rows import ExampleRows


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for every word, numbered in their order; the first one stands for all others."""
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@dataclass(frozen=True)
class RandomTokens:
    """As many windows as are asked for, drawn anew for every seed.

    Attributes:
        vocabulary: tokens are below it.
        name: as messages call the text.
    """

    vocabulary: int
    name: str = "random"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed or 0)
        return torch.randint(self.vocabulary, (count or 4, length), generator=generator)


@dataclass(frozen=True)
class RunningTokens:
    """A text of random tokens, of which the next cannot be known, cut into windows from its start.

    Attributes:
        vocabulary: tokens are below it.
        size: tokens of the text.
        seed: of its tokens; that of a request for windows has no effect.
        name: as messages call the text.
    """

    vocabulary: int
    size: int
    seed: int = 0
    name: str = "drawn"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        del seed
        tokens = torch.randint(self.vocabulary, (self.size,), generator=torch.Generator().manual_seed(self.seed))
        return tokens[: self.size // length * length].view(-1, length)[:count]


@dataclass(frozen=True)
class RepeatedTokens:
    """Seven tokens over and over, in as many windows: what follows is soon learned."""

    name: str = "repeated"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        del seed
        return torch.arange(7).repeat(length).view(-1, length)[:count]


@dataclass(frozen=True)
class UnequalRows(RepeatedTokens):
    """Eight rows of three to seven tokens, as instructions and their answers come."""

    def examples(self, length: int, train_on: str = "auto") -> ExampleRows:
        del train_on
        rows = [list(range(3 + n % 5))[:length] for n in range(8)]
        return ExampleRows({"input_ids": row, "labels": row} for row in rows)


@dataclass(frozen=True)
class OneToken:
    """The same token everywhere: 5 where no seed is given, and higher by the seed."""

    name: str = "the user's"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        return torch.full((count or 4, length), 5 + (seed or 0))
