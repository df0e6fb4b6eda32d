"""Records as arguments of a model of transformers, by the processors in its directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...ir.errors import RequestError, class_and_first_line, guarded
from ..calls import IDS, calls
from .arguments import Arguments
from .input_set import LABELS, DataSet, Sample
from .media import read_image, read_sound
from .records import Record, complete

if TYPE_CHECKING:
    from ..model import ModelSource

Made = TypeVar("Made")


class Processors:
    """The tokenizer, the image processor and the feature extractor of a model, each loaded when it is needed.

    Args:
        model: the model, on any device; only its class and configuration are used.
        source: its directory, and what may run there.
    """

    def __init__(self, model: Any, source: ModelSource) -> None:
        self.model, self.config, self.source = model, model.config, source
        self.arguments = Arguments.of(model)

    @property
    def medium(self) -> tuple[str, str] | None:
        """The argument for images or sounds, and which of the two it is; None for a model that reads text alone."""
        known = calls()["media"]
        main = self.model.main_input_name
        names = [main] if isinstance(main, str) else list(main)
        found = [name for name in (*names, *known) if name in known and self.arguments.takes(name)]
        return (found[0], known[found[0]]) if found else None

    @cached_property
    def tokenizer(self) -> Any:
        from ..model import load_tokenizer  # which imports transformers: not all that is pruned is of it

        return load_tokenizer(self.source)

    @cached_property
    def images(self) -> Any:
        from transformers import AutoImageProcessor

        return self._loaded(AutoImageProcessor, "image processor")

    @cached_property
    def sounds(self) -> Any:
        from transformers import AutoFeatureExtractor

        return self._loaded(AutoFeatureExtractor, "feature extractor")

    def _loaded(self, kind: Any, what: str) -> Any:
        directory = self.source.directory
        if not any((directory / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
            raise RequestError(
                f"{directory} has no {what}: there is no preprocessor_config.json in it",
                "copy it from the original model, or give the inputs as a .safetensors or .npz file",
            )
        allowed = self.source.consent.keywords(directory)
        return _guarded(
            lambda: kind.from_pretrained(directory, **allowed), f"{directory} has no readable {what}", "copy it again"
        )

    @property
    def rate(self) -> int:
        """Samples of sound in a second that the model reads."""
        return int(self.sounds.sampling_rate)


@dataclass(frozen=True)
class ProcessedRecords:
    """Records as samples for a model.

    Attributes:
        records: one for each sample.
        parts: those that all records have.
        processors: of the model.
    """

    records: Sequence[Record]
    parts: frozenset[str]
    processors: Processors

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, length: int) -> Sample:
        """One sample: the outputs of the processors, ``[1, ...]``, and labels."""
        record = self.records[index]
        found: Sample = {}
        for made in (self._medium(record), self._text(record, length), self._label(record)):
            found |= made
        return found

    def _medium(self, record: Record) -> Sample:
        if record.medium is None:
            return {}
        processors, takes = self.processors, self.processors.arguments.takes
        if record.kind == "image":
            image = read_image(record.medium, getattr(processors.config, "num_channels", 3) or 3)
            made = self._made(record, lambda: processors.images(image, return_tensors="pt"))
        else:
            sound = read_sound(record.medium, processors.rate)
            made = self._made(
                record, lambda: processors.sounds(sound, sampling_rate=processors.rate, return_tensors="pt")
            )
        return {name: value for name, value in made.items() if takes(name)}

    def _text(self, record: Record, length: int) -> Sample:
        """Token ids, and what the model should write as labels."""
        takes = self.processors.arguments.takes
        found: Sample = {}
        written = record.target
        if record.text is not None and takes(IDS):
            made = self._made(
                record,
                lambda: self.processors.tokenizer(
                    record.text, truncation=True, max_length=length, return_tensors="pt", verbose=False
                ),
            )
            found = {name: value for name, value in made.items() if takes(name)}
            self._check_tokens(found[IDS], record)
        elif record.text is not None and takes(LABELS):
            written = record.text
        if written is not None and takes(LABELS):
            found[LABELS] = self._written(written, record, length)
        return found

    def _written(self, text: str, record: Record, length: int) -> torch.Tensor:
        """Labels ``[1, tokens]``: without the token that the model itself puts before them."""
        ids = self._made(record, lambda: self.processors.tokenizer(text_target=text, verbose=False)[IDS])
        start = getattr(self.processors.config, "decoder_start_token_id", None)
        if len(ids) > 1 and ids[0] == start:
            ids = ids[1:]
        labels = torch.tensor([ids[:length]], dtype=torch.int64)
        self._check_tokens(labels, record)
        return labels

    def _check_tokens(self, ids: torch.Tensor, record: Record) -> None:
        known = getattr(self.processors.config.get_text_config(), "vocab_size", None)
        if not ids.numel():
            raise RequestError(f"{record.where} holds no token", "give texts with words in them")
        if known is not None and int(ids.max()) >= known:
            raise RequestError(
                f"the tokenizer makes token {int(ids.max())} from {record.where}, but the model has {known} tokens",
                "copy the tokenizer that the model was trained with to the directory of config.json",
            )

    def _label(self, record: Record) -> Sample:
        """The number of the class, ``[1]``."""
        if record.label is None or not self.processors.arguments.takes(LABELS):
            return {}
        known = dict(getattr(self.processors.config, "label2id", None) or {})
        number = known.get(str(record.label))
        if number is None and str(record.label).isdigit() and int(record.label) < len(known):
            number = int(record.label)
        if number is None:
            names = ", ".join(list(map(str, known))[:3])
            raise RequestError(
                f"{record.where}: {record.label!r} is none of the {len(known)} classes of the model, such as {names}",
                "name classes as 'label2id' in config.json does; or put all files in one folder, without classes",
            )
        return {LABELS: torch.tensor([number])}

    def _made(self, record: Record, work: Callable[[], Made]) -> Made:
        return _guarded(work, f"{record.where} cannot be processed", "check the file, and the processor of the model")


def inputs_of_records(name: str, records: Sequence[Record], processors: Processors) -> DataSet:
    """A data set of records for a model of transformers. One sample is processed here, to find what is wrong.

    Raises:
        RequestError: the model does not read such data, or a processor is missing.
    """
    parts = complete(records, name)
    wanted, owner = processors.medium, processors.arguments.owner
    kinds = {record.kind for record in records} - {""}
    kind = next(iter(kinds), "")
    if kind and (wanted is None or wanted[1] != kind):
        reads = "text" if wanted is None else f"{wanted[1]}s ({wanted[0]})"
        raise RequestError(f"'{name}' holds {kind}s, and {owner} reads {reads}", f"give a data set of {reads}")
    if wanted is not None and not kind and not processors.arguments.takes(IDS):
        raise RequestError(
            f"'{name}' holds text, and {owner} reads {wanted[1]}s ({wanted[0]})",
            f"give a folder of {wanted[1]}s, or the inputs as a .safetensors or .npz file",
        )
    encodes = getattr(processors.config, "is_encoder_decoder", False)
    writes = "target" in parts or (bool(kind) and "text" in parts)
    if encodes and not writes:
        what = (
            "transcript: give metadata.jsonl with file_name and text"
            if kind
            else "target: give rows with text and target"
        )
        raise RequestError(
            f"'{name}' does not say what {owner} should write, which its decoder needs to run",
            f"give every sample a {what}",
        )
    source = ProcessedRecords(records, parts, processors)
    first = source.sample(0, 1 << 20)
    processors.arguments.check(first, f"'{name}'")
    pad = getattr(processors.config.get_text_config(), "pad_token_id", None)
    return DataSet(name, source, frozenset(first), fillers={} if pad is None else {IDS: pad})


def _guarded(work: Callable[[], Made], message: str, hint: str) -> Made:
    return guarded(work, RequestError, message, hint, class_and_first_line)
