"""The texts of a run, which of their parts were read, and a check that a model is not measured on those parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ...backends.artifact import RECORD, read_record
from ...ir.errors import RequestError
from ...tracer.export import rows_per_sample
from ...tracer.model import DEMO, ModelSource, load_config, load_tokenizer
from ...tracer.texts.corpus import Text, from_rows, from_string, load_text, options_of_text
from ...tracer.texts.fingerprints import Fingerprint, TrackedText
from ...tracer.texts.overlap import MeasuredText, overlap, unchecked
from ...tracer.texts.several import joined
from ..request_checks import GivenFiles, GivenRows
from .reading import AS_NAMED, Reading

TEXTS = "texts"
"""The entry of ``fxprune.json`` that lists the texts that were read."""

Entries = list[dict[str, Any]]


def tracked_text(
    spec: str | GivenRows | GivenFiles | None, part: str, source: ModelSource, reading: Reading = AS_NAMED
) -> TrackedText | None:
    """A text under a model's tokenizer, which remembers what is read of it.

    Args:
        spec: as :func:`~fxprune.tracer.texts.corpus.load_text` reads it, or rows; for ``demo`` its own text when None.
        part: ``calibration`` or ``recovery``.
        source: the model.
        reading: how its rows are read.

    Raises:
        RequestError: as :func:`~fxprune.tracer.texts.corpus.load_text`.
    """
    if spec is None and source.name != DEMO:
        return None
    return TrackedText(text_of(spec, part, source, reading))


def text_of(
    spec: str | GivenRows | GivenFiles | None, part: str, source: ModelSource, reading: Reading = AS_NAMED
) -> Text:
    """A text that the user gave, or a part of the built-in text, tokenized for a model.

    What of ``reading`` a text has no use for, is for another one.

    Raises:
        RequestError: as :func:`~fxprune.tracer.texts.corpus.load_text`, or the model does not read text.
    """
    config = load_config(source)
    if (rows := rows_per_sample(config)) != 1:
        raise RequestError(
            f"a {config.model_type} model does not read text, but {rows} rows of codes at a time",
            "use passes that read no text: magnitude, random",
        )
    tokenizer = load_tokenizer(source)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(spec, GivenRows):
        return from_rows(spec.name, spec.rows, tokenizer).on(tokenizer, vocabulary)
    if spec is not None:
        given, paths = reading.to_json(), spec.paths if isinstance(spec, GivenFiles) else (spec,)
        uses = [{name: given[name] for name in options_of_text(path) & given.keys()} for path in paths]
        texts = [load_text(path, tokenizer, **used) for path, used in zip(paths, uses, strict=True)]
        return joined(spec if isinstance(spec, str) else spec.name, texts).on(tokenizer, vocabulary)
    from ...demo import name_of_text
    from ...demo import text as built_in

    return from_string(name_of_text(part), built_in(part), tokenizer).on(tokenizer, vocabulary)


def refuse_unused(reading: Reading, *texts: str | GivenRows | GivenFiles | None, argument: str = "") -> None:
    """Refuse a field or a split that none of the texts has.

    Args:
        reading: what was asked for.
        texts: all that it is for.
        argument: which it is for alone.

    Raises:
        RequestError: naming the texts.
    """
    paths = [path for text in texts for path in (text.paths if isinstance(text, GivenFiles) else [text])]
    for name, value in reading.to_json().items():
        if not any(isinstance(path, str) and name in options_of_text(path) for path in paths):
            given = f"{argument}={value}" if argument else value
            names = (
                ", ".join(path for path in paths if isinstance(path, str)) or "the text in use, built in or in memory,"
            )
            what = "no rows with fields" if name == "field" else "no data set with splits"
            raise RequestError(f"--{name} {given}: {names} is {what}", f"leave out --{name}")


class Remembering(Protocol):
    """Data that remembers what was read of it."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    def fingerprint(self, read_as: str, name: str) -> Fingerprint | None:
        """The fingerprint of what was read; None when nothing was read."""


def read_so_far(texts: Mapping[str, Remembering | None], *records: Mapping[str, Any]) -> Entries:
    """The texts that were read, for ``fxprune.json``, after those of the earlier runs that made the model."""
    entries: Entries = [entry for record in records for entry in record.get(TEXTS) or ()]
    for part, text in texts.items():
        # The path to a text depends on the machine, so only its last part is kept.
        found = text.fingerprint(part, Path(text.name).name) if text is not None else None
        if found is not None:
            entries.append(found.to_json())
    return [entry for at, entry in enumerate(entries) if entry not in entries[:at]]


def record_of(folder: Path) -> Mapping[str, Any]:
    """The ``fxprune.json`` of an artifact; empty for a directory that fxprune did not write."""
    return read_record(folder) if (folder / RECORD).is_file() else {}


def refuse_overlap(source: ModelSource, windows: torch.Tensor, text: Text) -> tuple[str, ...]:
    """Refuse to measure a model on text that it was calibrated or trained on.

    Args:
        source: the model.
        windows: the windows to measure on, ``[N, L]`` int64.
        text: the text that the windows are from.

    Returns:
        A sentence for each text that the model read, where an overlap with this one would not be found.

    Raises:
        RequestError: some windows overlap such a text; it says how many, with an example.
    """
    entries: Sequence[Mapping[str, Any]] = record_of(source.directory).get(TEXTS) or ()
    if not entries:
        return ()
    measured, notes = MeasuredText.of(windows, text), []
    for read in map(Fingerprint.from_json, entries):
        other = f"the {read.read_as} text '{read.name}' of {source.name}"
        found = overlap(read, measured)
        if found is not None:
            raise RequestError(
                f"'{text.name}' overlaps {other}: {found.windows} of {len(windows)} windows share {found.passages} of "
                f"its {len(read.passages):,} passages, such as {found.example!r}",
                "give a text that the model was not calibrated or trained on, or --allow-overlap",
            )
        if why := unchecked(read, measured):
            notes.append(f"not checked whether '{text.name}' overlaps {other}: {why}")
    return tuple(notes)
