"""What a data set holds before a processor reads it: texts, images, sounds, and what should be said of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.errors import RequestError
from .media import Medium

FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "transcription", "transcript"),
    "target": ("target", "summary", "translation"),
    "label": ("label",),
}
"""Names that fields of data sets usually have."""

NAMES_HINT = "name the fields text, target (what the model should write) and label"


@dataclass(frozen=True)
class Record:
    """One sample before it is processed.

    Attributes:
        where: for messages.
        text: what a model reads, or what is said in a sound.
        target: what a model should write.
        medium: an image or a sound.
        kind: of the medium: ``image`` or ``sound``; "" without one.
        label: name or number of a class.
    """

    where: str
    text: str | None = None
    target: str | None = None
    medium: Medium | None = None
    kind: str = ""
    label: str | int | None = None


def fields_of(row: Mapping[str, Any], where: str, *, medium: Medium | None = None, kind: str = "") -> Record:
    """A record from the fields of a row, by the names that they usually have.

    Raises:
        RequestError: a field holds something else than it should.
    """
    found = {field: _field(row, names, where) for field, names in FIELDS.items()}
    for field in ("text", "target"):
        if found[field] is not None and not isinstance(found[field], str):
            raise RequestError(f"{where}: {field} is not a string but {type(found[field]).__name__}", NAMES_HINT)
    label = found["label"]
    if label is not None and (not isinstance(label, str | int) or isinstance(label, bool)):
        raise RequestError(f"{where}: label is not a name or a number but {type(label).__name__}", NAMES_HINT)
    return Record(where, found["text"], found["target"], medium, kind, label)


def complete(records: Sequence[Record], name: str) -> frozenset[str]:
    """The parts that all records have; refuses those that only some have.

    Raises:
        RequestError: there is no record, or one lacks what another has.
    """
    if not records:
        raise RequestError(f"'{name}' is empty", "give a data set with samples")
    parts = []
    for part in ("text", "target", "medium", "label"):
        having = [getattr(record, part) is not None for record in records]
        if any(having) and not all(having):
            without = records[having.index(False)]
            raise RequestError(
                f"{without.where} has no {part}, and others of '{name}' have one",
                "give it for all samples, or for none",
            )
        if all(having):
            parts.append(part)
    return frozenset(parts)


def lines(name: str, texts: Iterable[str]) -> list[Record]:
    """A record for every text that is not empty.

    Raises:
        RequestError: there is none.
    """
    found = [
        Record(f"'{name}' line {number}", text=text.strip()) for number, text in enumerate(texts, 1) if text.strip()
    ]
    if not found:
        raise RequestError(f"'{name}' is empty", "give a text")
    return found


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    there = [name for name in names if row.get(name) is not None]
    if len(there) > 1:
        raise RequestError(f"{where} has both {there[0]!r} and {there[1]!r}", "give one of them")
    return row[there[0]] if there else None
