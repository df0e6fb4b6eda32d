"""Tokenised text: windows for calibration and perplexity, rows for recovery training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...ir.errors import RequestError, class_and_first_line, guarded
from ...runtime.model.training_rows import ANSWERS_ALONE, IGNORED, Example, ExampleRows
from ...runtime.place.choices import AUTO
from .files import decode_file, missing_file, row_suffix
from .formats import ALPACA, CHATS, PROMPTED, Records
from .rows import read_dataset, read_file
from .templates import ChatTemplate, TextSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TRAINED_ON_ANSWERS = (*CHATS, PROMPTED)
"""Formats of which training counts the answers alone, where it is not told otherwise."""


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
        answers: of each row the spans of characters that are answers; None where rows have none.
        written: whether rows come from a chat template, with all special tokens in them.
        read_from: what else is to be known of where they come from, such as their format.
    """

    name: str
    rows: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    whole: bool = True
    complete: bool = False
    vocabulary: int | None = None
    answers: tuple[tuple[TextSpan, ...], ...] | None = None
    written: bool = False
    read_from: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def ids(self) -> torch.Tensor:
        """All tokens, int64 ``[T]``: without special tokens, rows joined by an empty line.

        The text is tokenised in one piece, as in LLM-Pruner's evaluation code (arXiv 2305.11627). Of conversations
        the tokens that their template makes of each follow one another, with nothing between.
        """
        if self.written:
            return torch.tensor([i for row in self.rows for i in self._encode(row, special=False)], dtype=torch.int64)
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
            fewer = f"fewer windows: samples={whole} of a pass, --windows {whole} of eval" if whole else "shorter ones"
            raise RequestError(
                f"'{self.name}' is too short: it holds {whole} windows of {length} tokens ({len(self.ids)} tokens), "
                f"{max(wanted, 1)} are needed",
                f"give a longer text, or read {fewer}",
            )
        windows = self.ids[: whole * length].view(whole, length)
        if seed is None:
            return windows[:wanted]
        return windows[torch.randperm(whole, generator=torch.Generator().manual_seed(seed))[:wanted]]

    def tokens(self) -> torch.Tensor:
        """All tokens, int64 ``[T]``."""
        return self.ids

    def examples(self, length: int, train_on: str = AUTO) -> ExampleRows:
        """Training examples: ``input_ids`` and ``labels`` per example.

        A running text gives windows of ``length`` tokens. Otherwise each row is an example, with the special tokens of
        the tokenizer, cut to ``length``; a complete row that is short enough ends with the end-of-text token. Rows of
        fewer than two tokens have no token to predict and are left out.

        Args:
            length: the most tokens of an example.
            train_on: ``all`` counts every token, ``answers`` only those of answers, where the label of any other is
                ``IGNORED``; ``auto`` the answers of conversations and of prompts, and all tokens of other rows.

        Raises:
            RequestError: when there is no example, or no answers to count.
        """
        self.check_answers(train_on)
        if self.whole:
            return ExampleRows(_example(window) for window in self.windows(length).tolist())
        return self._row_examples(length, train_on)

    def check_examples(self, length: int, train_on: str = AUTO) -> None:
        """Refuse what :meth:`examples` would: rows are read up to the first that gives an example.

        Args:
            length, train_on: as there.

        Raises:
            RequestError: as there.
        """
        self.check_answers(train_on)
        if self.whole:
            self.windows(length, 1)
        else:
            self._row_examples(length, train_on, enough=1)

    def check_answers(self, train_on: str) -> None:
        """Refuse to count answers alone, where there are none; ``train_on`` as in :meth:`examples`.

        Raises:
            RequestError: saying what the text is.
        """
        if train_on == ANSWERS_ALONE and self.answers is None:
            what = "a running text" if self.whole else f"rows of `{self.read_from.get('field', 'text')}`"
            raise RequestError(
                f"'{self.name}' is {what}, which has no answers to train on alone",
                "give conversations or prompts with completions, or --train-on all",
            )

    def _row_examples(self, length: int, train_on: str, *, enough: int | None = None) -> ExampleRows:
        """The examples of rows; no more than are ``enough``."""
        alone = train_on == ANSWERS_ALONE or (train_on == AUTO and self.read_from.get("format") in TRAINED_ON_ANSWERS)
        found = ExampleRows()
        for at, row in enumerate(self.rows):
            if len(found) == enough:
                break
            if not row.strip():
                continue
            example = self._answered(row, at, length) if alone else _example(self._encode_row(row, length))
            if len(example["input_ids"]) < 2:
                continue
            if any(label != IGNORED for label in example["labels"][1:]):
                found.append(example)
            elif self.answers is not None and self.answers[at]:
                found.cut_off += 1
            else:
                found.unanswered += 1
        if found:
            return found
        if found.cut_off:
            raise RequestError(
                f"'{self.name}' has no row with an answer within {length} tokens: {'; '.join(found.left_out(length))}",
                "give a larger length, or --train-on all",
            )
        if found.unanswered:
            raise RequestError(
                f"'{self.name}' has no row with an answer, and answers alone are trained on",
                "give rows with answers, or --train-on all to train on every token",
            )
        raise RequestError(
            f"'{self.name}' has no row with at least two tokens at length {length}",
            "give longer rows, or a larger length",
        )

    def _answered(self, row: str, at: int, length: int) -> Example:
        """An example whose labels are those tokens that have a character of an answer, and the token that ends it."""
        assert self.answers is not None, "asked for only where there are some"
        if not getattr(self.tokenizer, "is_fast", False):
            raise RequestError(
                f"the tokenizer of the model does not say which characters its tokens are of, so that the answers in "
                f"'{self.name}' cannot be told from the rest",
                "give --train-on all, or a tokenizer.json",
            )
        made = self._guarded(
            lambda: self.tokenizer(row, add_special_tokens=not self.written, return_offsets_mapping=True, verbose=False)
        )
        ids, spans = list(self._known(made["input_ids"])), self.answers[at]
        marks = [any(start < last and end > first for first, last in spans) for start, end in made["offset_mapping"]]
        ended = self._ended(ids)
        marks += [True] * (len(ended) - len(ids))
        if self.complete and len(ended) == len(ids) and spans:  # the tokenizer itself wrote the end
            marks[-1] = True
        labels = [i if marked else IGNORED for i, marked in zip(ended, marks, strict=True)]
        return {"input_ids": ended[:length], "labels": labels[:length]}

    def on(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> Text:
        """The same text under another tokenizer."""
        return replace(self, tokenizer=tokenizer, vocabulary=vocabulary)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._guarded(lambda: self.tokenizer.decode(list(ids), skip_special_tokens=True)))

    def sample(self, characters: int) -> str:
        """About so many characters of the text, in rows that are all different and from all over it, as :meth:`decode`
        writes them."""
        rows = tuple(dict.fromkeys(self.rows))
        step = -(-sum(map(len, rows)) // characters) or 1
        return "\n\n".join(self.decode(self._encode(row[:characters], special=False)) for row in rows[::step])

    def _encode_row(self, row: str, length: int) -> list[int]:
        return self._ended(self._encode(row, special=not self.written))[:length]

    def _ended(self, ids: list[int]) -> list[int]:
        """A complete row ends with the end-of-text token."""
        end = self._guarded(lambda: self.tokenizer.eos_token_id)
        return [*ids, end] if self.complete and isinstance(end, int) and ids[-1:] != [end] else ids

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # verbose=False: the warning that a text is longer than the model's context does not matter here.
        return self._known(
            self._guarded(lambda: self.tokenizer.encode(text, add_special_tokens=special, verbose=False))
        )

    def _known(self, ids: list[int]) -> list[int]:
        unknown = max(ids, default=-1)
        if self.vocabulary is not None and unknown >= self.vocabulary:
            raise RequestError(
                f"the tokenizer makes token {unknown} from '{self.name}', but the model has {self.vocabulary} tokens",
                "copy the tokenizer that the model was trained with to the directory of config.json",
            )
        return ids

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Call the tokenizer: what is wrong in its files may show only at the first text."""
        message = f"the tokenizer cannot read the text '{self.name}'"
        return guarded(work, RequestError, message, "copy or download the tokenizer again", class_and_first_line)


def load_text(
    spec: str, tokenizer: PreTrainedTokenizerBase, *, field: str | None = None, split: str | None = None
) -> Text:
    """Read a text file, a file of rows, or a ``datasets`` id.

    Args:
        spec: a text file (UTF-8); a file of rows, which ends in ``.jsonl``, ``.json`` (a list of rows, or ``{"data":
            [...]}``), ``.csv``, ``.tsv``, ``.parquet`` or ``.arrow``; any of these as ``.gz`` or ``.zst``, but for the
            last two. Otherwise ``id``, ``id:split`` or ``id:config:split`` of Hugging Face ``datasets``, or a directory
            that ``datasets`` can load. Rows are as :func:`~.formats.format_of` finds them.
        tokenizer: the tokenizer, whose chat template writes conversations.
        field: the field of the rows to read, if it has another name; ``PROMPT,ANSWER`` for two.
        split: of a data set, where its name says none.

    Raises:
        RequestError: for a file that is missing, empty, damaged or not UTF-8; for rows without a known field; for a
            data set that cannot be loaded; for ``field`` with a text file, or ``split`` with any file.
    """
    path = Path(spec).expanduser()
    template = ChatTemplate(tokenizer)
    rows = row_suffix(path)
    if split and (rows or path.is_file()):
        raise RequestError(f"'{spec}' is a file and has no split '{split}'", "give no --split, or a data set")
    if rows:
        records = read_file(path, field, template)
    elif path.is_file() or _looks_like_file(path):
        if field:
            raise RequestError(f"'{spec}' is a text file and has no field '{field}'", "give no field")
        return replace(from_string(spec, decode_file(path), tokenizer), read_from=_digest(path))
    else:
        records = read_dataset(str(path), field, template, split)
    return _of_records(spec, records, tokenizer, {"field": field, "split": split, **_digest(path)})


def _digest(path: Path) -> dict[str, str]:
    """What tells whether a file holds the same text elsewhere; nothing for what is no file."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def options_of_text(spec: str) -> frozenset[str]:
    """Which of the options ``field`` and ``split`` have a meaning for what the user named: none for a running text."""
    path = Path(spec).expanduser()
    if row_suffix(path):
        return frozenset({"field"})
    return frozenset() if path.is_file() or _looks_like_file(path) else frozenset({"field", "split"})


def check_there(spec: str) -> None:
    """Refuse a name that only a file can have, where no file is.

    Raises:
        RequestError: as :func:`load_text`, which reads it.
    """
    path = Path(spec).expanduser()
    if (row_suffix(path) or _looks_like_file(path)) and not path.exists():
        raise missing_file(path)


def _of_records(
    name: str, records: Records, tokenizer: PreTrainedTokenizerBase, asked: Mapping[str, str | None]
) -> Text:
    given = {key: value for key, value in asked.items() if value is not None}
    nulls = {"nulls": records.nulls} if records.nulls else {}
    return Text(
        name, records.rows, tokenizer, whole=False, complete=records.complete, answers=records.answers,
        written=records.written, read_from={"format": _told(records), **given, **nulls},
    )  # fmt: skip


def _told(records: Records) -> str:
    """The format for reports; that of instructions says whether a chat template wrote them."""
    return PROMPTED if records.format == ALPACA and records.written else records.format


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


def _example(ids: list[int]) -> Example:
    return {"input_ids": ids, "labels": list(ids)}
