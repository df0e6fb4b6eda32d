"""Several texts as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...runtime.model.training_rows import ExampleRows
from ...runtime.place.choices import AUTO
from .corpus import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SeveralTexts(Text):
    """Texts one after the other, each in its own format.

    Attributes:
        parts: the texts.
    """

    parts: tuple[Text, ...] = ()

    @cached_property
    def ids(self) -> torch.Tensor:
        """The tokens of all, int64 ``[T]``."""
        return torch.cat([part.ids for part in self.parts])

    def examples(self, length: int, train_on: str = AUTO) -> ExampleRows:
        """The examples of all, as :meth:`.corpus.Text.examples`."""
        found = ExampleRows()
        for part in self.parts:
            more = part.examples(length, train_on)
            found += more
            found.unanswered += more.unanswered
            found.cut_off += more.cut_off
        return found

    def check_examples(self, length: int, train_on: str = AUTO) -> None:
        """Refuse a text that gives none, as :meth:`.corpus.Text.check_examples`."""
        for part in self.parts:
            part.check_examples(length, train_on)

    def on(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> SeveralTexts:
        """The same texts under another tokenizer."""
        parts = tuple(part.on(tokenizer, vocabulary) for part in self.parts)
        return replace(self, parts=parts, tokenizer=tokenizer, vocabulary=vocabulary)


def joined(name: str, parts: Sequence[Text]) -> Text:
    """Texts as one; a single one is itself.

    Args:
        name: what the user calls all of them.
        parts: at least one, of one tokenizer.
    """
    if len(parts) == 1:
        return parts[0]
    rows = tuple(row for part in parts for row in part.rows)
    nulls = sum(part.read_from.get("nulls", 0) for part in parts)
    names = short_names([part.name for part in parts])
    read_from = {"files": [{"name": short, **part.read_from} for short, part in zip(names, parts, strict=True)]}
    return SeveralTexts(
        name, rows, parts[0].tokenizer, whole=all(part.whole for part in parts), parts=tuple(parts),
        read_from={**read_from, **({"nulls": nulls} if nulls else {})},
    )  # fmt: skip


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many before it as tell it from the others; equal paths stay equal."""
    parts = [Path(path).parts for path in paths]
    found = []
    for own in parts:
        others = [other for other in parts if other != own]
        alike = (
            length for length in range(1, len(own) + 1) if all(own[-length:] != other[-length:] for other in others)
        )
        found.append(str(Path(*own[-next(alike, len(own)) :])) if own else "")
    return found
