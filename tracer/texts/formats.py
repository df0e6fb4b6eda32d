"""The formats of rows: which fields are read, and what they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...ir.errors import RequestError
from .chats import Chat, asked_and_answered, read_chat
from .files import kind_of, listing
from .templates import ChatTemplate, Rendered

FIELDS_HINT = (
    "name the field to read with --field (field=); or give rows with `text`, `messages`, ShareGPT's `conversations`, "
    "`prompt` and `completion`, or Alpaca's `instruction` and `output` (and `input`)"
)

# The two prompts of Stanford Alpaca, the published format for training on instruction rows.
_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

TEXT, MESSAGES, CONVERSATIONS, PROMPTED, ALPACA = "text", "messages", "conversations", "prompt", "alpaca"

CHATS = (MESSAGES, CONVERSATIONS)
"""Formats that only a chat template can write."""


@dataclass(frozen=True)
class RowFormat:
    """How rows are read.

    Attributes:
        name: one of :data:`TEXT` to :data:`ALPACA`.
        fields: that every row has; a name with dots leads into objects.
        also: that rows may have.
    """

    name: str
    fields: tuple[str, ...]
    also: tuple[str, ...] = ()


ROW_FORMATS = (
    RowFormat(MESSAGES, ("messages",), ("tools",)),
    RowFormat(CONVERSATIONS, ("conversations",), ("tools", "system")),
    RowFormat(TEXT, ("text",)),
    RowFormat(PROMPTED, ("prompt", "completion")),
    RowFormat(PROMPTED, ("prompt", "response")),
    RowFormat(ALPACA, ("instruction", "output"), ("input",)),
)
"""What is looked for where no field is named: the first whose fields are all there."""


@dataclass(frozen=True)
class Records:
    """Rows as text.

    Attributes:
        rows: one text per row, in order; a row may be empty.
        complete: whether each row is a complete text (a prompt with its answer), which the tokenizer ends with its
            end-of-text token.
        answers: of each row the spans that are answers; None where the rows have none.
        written: whether the texts come from a chat template, with all special tokens in them.
        format: the format of the rows.
        nulls: rows without a value, or with a conversation in which nothing is said, which were left out.
    """

    rows: tuple[str, ...]
    complete: bool
    answers: tuple[tuple[tuple[int, int], ...], ...] | None = None
    written: bool = False
    format: str = TEXT
    nulls: int = 0


def format_of(row: Mapping[str, Any], where: str, field: str | None) -> RowFormat:
    """The format of rows, from the first one.

    Args:
        row: the first row; of a table its columns, with any values.
        where: its place, for messages.
        field: the field to read, or ``PROMPT,ANSWER``; None to look for a known format.

    Raises:
        RequestError: the fields are not there.
    """
    if field:
        names = tuple(name.strip() for name in field.split(",")) if field not in row else (field,)
        if len(names) > 2 or not all(names):
            raise RequestError(f"--field {field} names {len(names)} fields", "name one, or PROMPT,ANSWER")
        for name in names:
            if name.partition(".")[0] not in row and name not in row:
                raise RequestError(f"{where} has no field '{name}'; its fields: {listing(row)}", FIELDS_HINT)
        return RowFormat(TEXT if len(names) == 1 else PROMPTED, names, ("tools",) if len(names) == 1 else ())
    for known in ROW_FORMATS:
        if all(name in row for name in known.fields):
            return known
    raise RequestError(f"{where} has no known text field; its fields: {listing(row)}", FIELDS_HINT)


def render_rows(
    rows: Iterable[tuple[str, Any]], source: str, field: str | None = None, template: ChatTemplate | None = None
) -> Records:
    """Convert rows to texts, in the format of the first row.

    Args:
        rows: pairs (place of the row for messages, the row).
        source: name of the source for messages.
        field: as :func:`format_of`.
        template: of the model's tokenizer; None for rows that need none.

    Raises:
        RequestError: for no rows, a row that is not an object, a row without the fields of the first row, or a
            conversation that cannot be written.
    """
    found: list[Rendered] = []
    form: RowFormat | None = None
    nulls = 0
    for where, row in rows:
        if row is None:
            nulls += 1
            continue
        if not isinstance(row, Mapping):
            raise RequestError(f"{where} is not an object but {kind_of(row)}", FIELDS_HINT)
        form = form or format_of(row, where, field)
        values = [_value(row, name, where) for name in form.fields]
        if None in values:
            nulls += 1
            continue
        if form.name == TEXT and isinstance(values[0], list):
            form = RowFormat(MESSAGES, form.fields, form.also)
        also = {name: row.get(name) for name in form.also}
        if (rendered := _rendered(form, values, also, where, template)) is None:
            nulls += 1
        else:
            found.append(rendered)
    if form is None or not any(row.text.strip() for row in found):
        raise RequestError(f"'{source}' is empty" + _all_null(found, nulls), "give rows with text")
    written = form.name in CHATS or (form.name in (PROMPTED, ALPACA) and _writes(template))
    answers = None if form.name == TEXT else tuple(row.answers or () for row in found)
    complete = form.name in (PROMPTED, ALPACA) and not written
    return Records(tuple(row.text for row in found), complete, answers, written, form.name, nulls)


def _all_null(found: list[Rendered], nulls: int) -> str:
    if not nulls or found:
        return ""
    return ": its only row is null or empty" if nulls == 1 else f": all of its {nulls} rows are null or empty"


def _writes(template: ChatTemplate | None) -> bool:
    return template is not None and template.there


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a field; that of ``a.b`` is in the object ``a``, if there is no field of that name."""
    if name in row:
        return row[name]
    value: Any = row
    for at, part in enumerate(parts := name.split(".")):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            inside = f"'{'.'.join(parts[:at])}' of {where}" if at else where
            fields = (
                f"; its fields: {listing(value)}"
                if isinstance(value, Mapping)
                else f", but it is no object but {kind_of(value)}"
            )
            raise RequestError(f"{inside} has no field '{part}'{fields}", FIELDS_HINT)
        value = value[part]
    return value


def _rendered(
    form: RowFormat, values: list[Any], also: Mapping[str, Any], where: str, template: ChatTemplate | None
) -> Rendered | None:
    """A row as text; None for a conversation in which nothing is said."""
    if form.name in CHATS:
        chat = read_chat(values[0], where, tools=also.get("tools"), system=also.get("system"))
        return _written(chat, where, template)
    lists = [name for name, value in zip(form.fields, values, strict=True) if isinstance(value, list)]
    if form.name == PROMPTED and lists == list(form.fields):  # both in messages
        return _written(read_chat([*values[0], *values[1]], where), where, template)
    if form.name == PROMPTED and lists:
        odd, value = next((name, one) for name, one in zip(form.fields, values, strict=True) if name not in lists)
        raise RequestError(
            f"{where}: field '{lists[0]}' is a list, and '{odd}' is {kind_of(value)}", "give texts or messages in both"
        )
    texts = [_string(value, name, where) for name, value in zip(form.fields, values, strict=True)]
    if form.name == TEXT:
        return Rendered(texts[0])
    question, answer = texts
    context = _string(also["input"], "input", where) if also.get("input") else ""
    if template is not None and template.there:
        if not any(text.strip() for text in (question, context, answer)):
            return None
        asked = f"{question}\n\n{context}" if context else question
        return template.render(asked_and_answered(asked, answer), where)
    if form.name == ALPACA:
        prompt = _PROMPT_WITH_INPUT if context else _PROMPT
        question = prompt.format(instruction=question, input=context)
    return Rendered(question + answer, ((len(question), len(question) + len(answer)),))


def _written(chat: Chat | None, where: str, template: ChatTemplate | None) -> Rendered | None:
    if chat is None:
        return None
    if template is None:
        raise RequestError(f"{where} is a conversation, where texts are read", FIELDS_HINT)
    return template.render(chat, where)


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where}: field '{name}' is not a string but {kind_of(value)}", FIELDS_HINT)
    return value
