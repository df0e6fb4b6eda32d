"""Text that has been tokenised: windows for calibration and perplexity, rows for recovery training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..ir.errors import RequestError
from .records import JSON_SUFFIXES, decode_file, read_dataset, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """A text under a tokenizer; the passes' ``Corpus``.

    Attributes:
        name: what the user called it; for reports.
        rows: the text, whole or row by row.
        tokenizer: what cuts it into tokens.
        whole: whether ``rows`` is one running text rather than examples that stand for themselves.
        complete: whether each row is a finished answer, after which an end-of-text token belongs.
        vocabulary: how many tokens the model knows; not checked when None.
    """

    name: str
    rows: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    whole: bool = True
    complete: bool = False
    vocabulary: int | None = None

    @cached_property
    def ids(self) -> torch.Tensor:
        """All tokens, ``[T]`` int64: no special tokens, rows joined by a blank line.

        As LLM-Pruner's evaluation does (arXiv 2305.11627, its code): the text is tokenised in one piece.
        """
        return torch.tensor(self._encode("\n\n".join(self.rows), special=False), dtype=torch.int64)

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Token ids ``[count, length]`` int64: non-overlapping windows of the whole text, its tail dropped.

        Args:
            length: tokens in a window.
            count: how many; all of them when None.
            seed: None takes the first windows in order, an integer draws them at random without repetition.

        Raises:
            RequestError: when the text holds fewer than ``count`` windows, or none.
        """
        if length < 1 or (count is not None and count < 1):
            raise RequestError(f"{count} windows of {length} tokens cannot be cut", "ask for at least one of each")
        whole = len(self.ids) // length
        wanted = whole if count is None else count
        if whole < max(wanted, 1):
            raise RequestError(
                f"'{self.name}' is too short: it holds {whole} windows of {length} tokens ({len(self.ids)} tokens), "
                f"{max(wanted, 1)} asked for",
                "give a longer text, or ask for fewer or shorter windows",
            )
        windows = self.ids[: whole * length].view(whole, length)
        if seed is None:
            return windows[:wanted]
        return windows[torch.randperm(whole, generator=torch.Generator().manual_seed(seed))[:wanted]]

    def examples(self, length: int) -> list[dict[str, list[int]]]:
        """What recovery trains on: ``input_ids`` and ``labels`` per example, the loss on every token.

        A running text gives its windows of ``length`` tokens. Rows stay rows: each with the special tokens that its
        tokenizer puts around a text, cut to ``length``; one that is complete and short enough ends in the end-of-text
        token. Rows of fewer than two tokens hold nothing to predict and are left out.

        Raises:
            RequestError: when nothing is left.
        """
        if self.whole:
            return [_example(window) for window in self.windows(length).tolist()]
        ids = [self._encode_row(row, length) for row in self.rows if row.strip()]
        examples = [_example(row) for row in ids if len(row) > 1]
        if not examples:
            raise RequestError(
                f"'{self.name}' has no row with two tokens within {length}", "give longer rows, or a larger length"
            )
        return examples

    def _encode_row(self, row: str, length: int) -> list[int]:
        ids = self._encode(row, special=True)
        end = self.tokenizer.eos_token_id
        if self.complete and isinstance(end, int) and ids[-1:] != [end]:
            ids = [*ids, end]
        return ids[:length]

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # verbose=False: the advice that a text is longer than the model's context is not meant for texts to be cut.
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special, verbose=False)
        unknown = max(ids, default=-1)
        if self.vocabulary is not None and unknown >= self.vocabulary:
            raise RequestError(
                f"the tokenizer makes token {unknown} of '{self.name}', and the model knows {self.vocabulary} tokens",
                "put the tokenizer that the model was trained with beside its config.json",
            )
        return ids


def load_text(spec: str, tokenizer: PreTrainedTokenizerBase, *, field: str | None = None) -> Text:
    """Read a text file, a JSON or JSON-lines file, or a ``datasets`` id.

    Args:
        spec: a text file (UTF-8); a ``.jsonl`` file of rows or a ``.json`` file that holds a list of them, with a
            ``text`` field or Alpaca's ``instruction``, ``input`` and ``output``; otherwise ``id``, ``id:split`` or
            ``id:config:split`` of Hugging Face ``datasets``, or a directory that ``datasets`` can load.
        tokenizer: what cuts it into tokens.
        field: the field of the rows to read, when it has another name.

    Raises:
        RequestError: a file that is missing, empty, not UTF-8 or broken JSON; rows without a known field; a data set
            that cannot be loaded; ``field`` for a text file.
    """
    path = Path(spec).expanduser()
    if path.suffix in JSON_SUFFIXES:
        records = read_json(path, field)
    elif path.is_file() or _looks_like_file(path):
        if field:
            raise RequestError(f"'{spec}' is a text file and has no field '{field}'", "leave the field out")
        return from_string(spec, decode_file(path), tokenizer)
    else:
        records = read_dataset(str(path), field)
    return Text(spec, records.rows, tokenizer, whole=False, complete=records.complete)


def from_string(name: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Text:
    """A running text that is already in memory.

    Raises:
        RequestError: when it is empty.
    """
    if not text.strip():
        raise RequestError(f"the text '{name}' is empty", "give some text")
    return Text(name, (text,), tokenizer)


def from_rows(name: str, rows: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Rows that are already in memory: each stands for itself, as those of a ``.jsonl`` file do.

    Raises:
        RequestError: when none holds any text.
    """
    if not any(row.strip() for row in rows):
        raise RequestError(f"the text '{name}' is empty", "give some text")
    return Text(name, tuple(rows), tokenizer, whole=False)


def _looks_like_file(path: Path) -> bool:
    """Whether a missing path was meant as a file and not as a data set, so that the message can say so."""
    folder = Path(str(path).partition(":")[0])
    return not folder.is_dir() and (path.suffix in (".txt", ".text", ".md") or path.is_absolute())


def _example(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "labels": list(ids)}
