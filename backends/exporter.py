"""What an exporter is: a format to write a model in, with its options, and what it is given and gives back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..runtime.consent import Consent
from .seen import Seen


def numbered(say: Callable[[str], None], total: int) -> Callable[[str], None]:
    """As ``say``, with the number of every stage behind it: ``writing the file (2 of 3)``."""
    numbers = itertools.count(1)
    return lambda text: say(f"{text} ({next(numbers)} of {total})")


def _say_nothing(message: str) -> None:
    del message


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is exported, and to where.

    Attributes:
        name: the model as the user named it.
        source: a Hugging Face model directory with safetensors weights.
        out: the directory to make, or the file, complete or absent.
        config: the model's ``PreTrainedConfig``.
        causal_lm: whether it takes token ids and predicts the next one.
        load: makes the module with its weights: float32, on the CPU, in evaluation mode.
        inputs: what to call such a module with: keyword arguments of its forward, with values.
        consent: what may run of the source; its ``keywords`` tell transformers.
        inner: keys of outputs that are inner states, which do not count where there are others.
        seen: what was at ``out`` and in ``source`` at first, for ``atomic_directory``.
        force: whether an existing ``out`` is replaced, once the new one is complete.
        progress: told in a few words what is going on.
    """

    name: str
    source: Path
    out: Path
    config: Any
    causal_lm: bool
    load: Callable[[], torch.nn.Module]
    inputs: Callable[[torch.nn.Module], Mapping[str, torch.Tensor]]
    consent: Consent
    inner: Collection[str] = ()
    seen: Seen | None = None
    force: bool = False
    progress: Callable[[str], None] = _say_nothing


class ExportReport(Protocol):
    """What was written and how well it agrees with the model."""

    @property
    def path(self) -> Path:
        """The directory, or the file."""

    @property
    def bytes(self) -> int:
        """Of the model's files."""

    @property
    def summary(self) -> str:
        """In a few words, what was made."""

    @property
    def measured(self) -> Mapping[str, Mapping[str, str]]:
        """Title of a column -> what was checked -> the value."""

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""


@dataclass(frozen=True, kw_only=True)
class FilesReport:
    """The report of an exporter that has nothing of its own to add.

    Attributes:
        format: the exporter's name.
        path: the directory.
        bytes: of the model's files.
        summary: in a few words, what was made.
        measured: title of a column -> what was checked -> the value.
    """

    format: str
    path: Path
    bytes: int
    summary: str = ""
    measured: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data, without the path, which is not a property of the artifact."""
        fields = dataclasses.asdict(self)
        del fields["path"]
        return fields


class Exporter(Protocol):
    """A format. Its class is a frozen dataclass whose fields are its options; its name is what ``--format`` calls it.

    A format of one file has a class attribute ``file_begins``, the bytes that every such file begins with: ``--force``
    replaces only these. It writes by :func:`~fxprune.backends.placed_file.placed_file`.

    A class attribute ``packages`` names modules without which it cannot run, and which an extra of fxprune brings.

    Attributes:
        name: as written in ``name{option=value}``.
    """

    name: ClassVar[str]

    def check(self) -> None:
        """Check the option values before anything runs.

        Raises:
            RequestError: with the option, its value, and the allowed values.
        """

    def export(self, request: ExportRequest) -> ExportReport:
        """Write the model, verify it with the program that will load it, and only then move it to its place.

        Raises:
            RequestError: a model or a directory that it cannot take, found before any work.
            FxpruneError: the result cannot be written, or differs from the model.
        """
