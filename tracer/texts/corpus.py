"""Tokenised text: windows for calibration and perplexity, rows for recovery training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...ir.errors import RequestError, class_and_first_line, ends_program
from .rows import JSON_SUFFIXES, decode_file, read_dataset, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """A text with its tokenizer; implements the passes' ``Corpus``.

    Attributes:
        name: the name that the user gave, for reports.
        rows: the text, as one string or as rows.
        tokenizer: the tokenizer.
        whole: whether ``rows`` is one running text instead of separate examples.
        complete: whether each row is a complete text that ends with an end-of-text token.
        vocabulary: vocabulary size of the model; None to skip the check of token ids.
    """

    name: str
    rows: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    whole: bool = True
    complete: bool = False
    vocabulary: int | None = None

    @cached_property
    def ids(self) -> torch.Tensor:
        """All tokens, int64 ``[T]``: without special tokens, rows joined by an empty line.

        The text is tokenised in one piece, as in LLM-Pruner's evaluation code (arXiv 2305.11627).
        """
        return torch.tensor(self._encode("\n\n".join(self.rows), special=False), dtype=torch.int64)

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Token ids, int64 ``[count, length]``: windows of the whole text without overlap; an incomplete last one is
        left out.

        Args:
            length: tokens in a window.
            count: number of windows; all when None.
            seed: None takes the first windows in order, an integer draws them at random without repetition.

        Raises:
            RequestError: when the text holds fewer than ``count`` windows, or none.
        """
        if length < 1 or (count is not None and count < 1):
            raise RequestError(f"cannot make {count} windows of {length} tokens", "give at least 1 for both")
        whole = len(self.ids) // length
        wanted = whole if count is None else count
        if whole < max(wanted, 1):
            raise RequestError(
                f"'{self.name}' is too short: it holds {whole} windows of {length} tokens ({len(self.ids)} tokens), "
                f"{max(wanted, 1)} are needed",
                "give a longer text, or use fewer or shorter windows",
            )
        windows = self.ids[: whole * length].view(whole, length)
        if seed is None:
            return windows[:wanted]
        return windows[torch.randperm(whole, generator=torch.Generator().manual_seed(seed))[:wanted]]

    def tokens(self) -> torch.Tensor:
        """All tokens, int64 ``[T]``."""
        return self.ids

    def examples(self, length: int) -> list[dict[str, list[int]]]:
        """Training examples: ``input_ids`` and ``labels`` per example, with the loss on every token.

        A running text gives windows of ``length`` tokens. Otherwise each row is an example, with the special tokens of
        the tokenizer, cut to ``length``; a complete row that is short enough ends with the end-of-text token. Rows of
        fewer than two tokens have no token to predict and are left out.

        Raises:
            RequestError: when there is no example.
        """
        if self.whole:
            return [_example(window) for window in self.windows(length).tolist()]
        ids = [self._encode_row(row, length) for row in self.rows if row.strip()]
        examples = [_example(row) for row in ids if len(row) > 1]
        if not examples:
            raise RequestError(
                f"'{self.name}' has no row with at least two tokens at length {length}",
                "give longer rows, or a larger length",
            )
        return examples

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._guarded(lambda: self.tokenizer.decode(list(ids), skip_special_tokens=True)))

    def _encode_row(self, row: str, length: int) -> list[int]:
        ids = self._encode(row, special=True)
        end = self._guarded(lambda: self.tokenizer.eos_token_id)
        if self.complete and isinstance(end, int) and ids[-1:] != [end]:
            ids = [*ids, end]
        return ids[:length]

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # verbose=False: the warning that a text is longer than the model's context does not matter here.
        ids: list[int] = self._guarded(lambda: self.tokenizer.encode(text, add_special_tokens=special, verbose=False))
        unknown = max(ids, default=-1)
        if self.vocabulary is not None and unknown >= self.vocabulary:
            raise RequestError(
                f"the tokenizer makes token {unknown} from '{self.name}', but the model has {self.vocabulary} tokens",
                "copy the tokenizer that the model was trained with to the directory of config.json",
            )
        return ids

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Call the tokenizer. What is wrong in its files may show only at the first text, and its errors have no common
        class."""
        try:
            return work()
        except MemoryError:
            raise
        except BaseException as error:
            if ends_program(error):
                raise
            raise RequestError(
                f"the tokenizer cannot read the text '{self.name}': {class_and_first_line(error)}",
                "copy or download the tokenizer again",
            ) from error


def load_text(spec: str, tokenizer: PreTrainedTokenizerBase, *, field: str | None = None) -> Text:
    """Read a text file, a JSON or JSON-lines file, or a ``datasets`` id.

    Args:
        spec: a text file (UTF-8); a ``.jsonl`` file of rows or a ``.json`` file that holds a list of them, with a
            ``text`` field or Alpaca's ``instruction``, ``input`` and ``output``; otherwise ``id``, ``id:split`` or
            ``id:config:split`` of Hugging Face ``datasets``, or a directory that ``datasets`` can load.
        tokenizer: the tokenizer.
        field: the field of the rows to read, if it has another name.

    Raises:
        RequestError: for a file that is missing, empty, not UTF-8 or invalid JSON; for rows without a known field; for
            a data set that cannot be loaded; for ``field`` with a text file.
    """
    path = Path(spec).expanduser()
    if path.suffix in JSON_SUFFIXES:
        records = read_json(path, field)
    elif path.is_file() or _looks_like_file(path):
        if field:
            raise RequestError(f"'{spec}' is a text file and has no field '{field}'", "give no field")
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
        raise RequestError(f"the text '{name}' is empty", "give a text")
    return Text(name, (text,), tokenizer)


def from_rows(name: str, rows: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Rows that are already in memory: each stands for itself, as those of a ``.jsonl`` file do.

    Raises:
        RequestError: when none holds any text.
    """
    if not any(row.strip() for row in rows):
        raise RequestError(f"the text '{name}' is empty", "give a text")
    return Text(name, tuple(rows), tokenizer, whole=False)


def _looks_like_file(path: Path) -> bool:
    """Whether a missing path looks like a file and not like a data set, for the error message."""
    folder = Path(str(path).partition(":")[0])
    return not folder.is_dir() and (path.suffix in (".txt", ".text", ".md") or path.is_absolute())


def _example(ids: list[int]) -> dict[str, list[int]]:
    return {"input_ids": ids, "labels": list(ids)}
