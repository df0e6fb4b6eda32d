"""Data sets of inputs in a run: opened before the work, tried on the model, and what was read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ...ir.errors import RequestError, class_and_first_line
from ...passes.base import Pass
from ...passes.model.answers import OWN_LOSS
from ...passes.model.inputs import called_with
from ...passes.recover.base import Recovery
from ...runtime.place.memory import is_out_of_memory
from ...runtime.streaming.block_runner import BlockRunner
from ...tracer.inputs.arguments import Arguments
from ...tracer.inputs.batches import inputs_of_batches
from ...tracer.inputs.input_set import DataSet, Rows, Sample
from ...tracer.inputs.opened import names_inputs, open_inputs, open_rows, open_tensors, refuse_doubt
from ...tracer.inputs.processed import Processors
from ...tracer.inputs.renumbered import renumbered
from ...tracer.texts.corpus import check_there
from ...tracer.texts.fingerprints import Fingerprint, TrackedText
from ...tracer.texts.passages import Passages
from ..request_checks import RECOVERY, GivenBatches, GivenFiles, GivenRows
from .reading import ARGUMENTS, Readings

if TYPE_CHECKING:
    from ...runtime.vocabulary.kept import Renumbering
    from ...tracer.model import ModelSource

AsGiven = str | GivenRows | GivenFiles | GivenBatches | None


@dataclass
class TrackedInputs:
    """A data set that remembers which samples were read. Implements the passes' ``DataSet``.

    Attributes:
        inputs: the data set.
    """

    inputs: DataSet
    _read: dict[int, None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.inputs.name

    @property
    def labelled(self) -> bool:
        return self.inputs.labelled

    @property
    def divided(self) -> bool:
        return self.inputs.divided

    def rows(self, length: int, count: int | None = None, seed: int | None = None) -> Rows:
        """As :meth:`DataSet.rows`, recorded as read."""
        found = self.inputs.rows(length, count, seed)
        self._read.update(dict.fromkeys(found.order))
        return found

    def join(self, rows: Sequence[Mapping[str, Any]]) -> Sample:
        """As :meth:`DataSet.join`."""
        return self.inputs.join(rows)

    @property
    def pieces_read(self) -> dict[str, npt.NDArray[np.int64]]:
        """The numbers of the samples that were read."""
        return {"samples": np.array(list(self._read), dtype=np.int64)}

    def remember(self, pieces: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Also count as read what :attr:`pieces_read` gave in a run that this run resumes."""
        self._read.update(dict.fromkeys(pieces["samples"].tolist()))

    def renumber(self, renumbering: Renumbering, arguments: frozenset[str]) -> None:
        """From now on give samples for a model with fewer tokens, as :func:`renumbered`."""
        self.inputs = renumbered(self.inputs, renumbering, arguments)

    def fingerprint(self, read_as: str, name: str) -> Fingerprint | None:
        """What was read, without passages: nothing in it can be met again in a text. None when nothing was read."""
        return Fingerprint(read_as, name, len(self._read), Passages.of(()), 0) if self._read else None


def is_text(given: AsGiven, *, language: bool) -> bool:
    """Whether data is read as text under the model's tokenizer, in windows; not so where it gives inputs by name.

    Args:
        given: as the user gave it.
        language: whether the model is a causal language model.
    """
    if not language or isinstance(given, GivenBatches):
        return False
    return not (isinstance(given, str) and names_inputs(given))


def check_reading(readings: Readings, texts: Mapping[str, AsGiven], *, language: bool) -> None:
    """Refuse a text that is named like a file and is not there, and a field or a split for what is no text, or has
    none.

    Raises:
        RequestError: naming what was given.
    """
    for given in texts.values() if language else ():
        for path in given.paths if isinstance(given, GivenFiles) else (given,):
            if isinstance(path, str) and not names_inputs(path):
                check_there(path)
    if not readings.to_json():
        return
    from .seen_texts import refuse_unused  # which imports transformers, as a text needs a tokenizer

    read = {
        ARGUMENTS[part]: given
        for part, given in texts.items()
        if given is not None and not isinstance(given, GivenBatches) and is_text(given, language=language)
    }
    for argument, reading in readings.of.items():
        refuse_unused(reading, read.get(argument), argument=argument)
    refuse_unused(readings.usual, *(given for name, given in read.items() if name not in readings.of))


def opened_inputs(
    texts: Mapping[str, AsGiven], model: torch.nn.Module, source: ModelSource, *, language: bool
) -> dict[str, DataSet]:
    """The data sets among what the user gave: part (``calibration``, ``recovery``) -> data set.

    Args:
        texts: as they were given.
        model: on the meta device.
        source: its directory.
        language: whether it is a causal language model.

    Raises:
        RequestError: one cannot be read, or does not fit the model.
    """
    processors = Processors(model, source)
    found: dict[str, DataSet] = {}
    for part, given in texts.items():
        if given is None or is_text(given, language=language):
            continue
        if isinstance(given, GivenFiles):
            raise RequestError(
                f"{type(model).__name__} reads one data set, and {len(given.paths)} were given: {given.name}",
                "put them into one folder or file",
            )
        if isinstance(given, str):
            refuse_doubt(given)
        if isinstance(given, GivenBatches):
            found[part] = inputs_of_batches(given.name, given.batches, processors.arguments)
        elif isinstance(given, GivenRows):
            found[part] = open_rows(given.name, given.rows, processors)
        elif language:
            found[part] = open_tensors(given, processors.arguments)
        else:
            found[part] = open_inputs(given, processors)
    return found


def named_inputs(given: str | Sequence[Any], name: str, module: torch.nn.Module) -> DataSet:
    """A data set for a module that is not of transformers.

    Args:
        given: a file of tensors by argument name, ``package.module:function``, or batches.
        name: of the argument.
        module: the module.

    Raises:
        RequestError: it cannot be read, or does not fit the module.
    """
    arguments = Arguments.of(module)
    if isinstance(given, str):
        return open_tensors(given, arguments)
    return inputs_of_batches(name, given, arguments)


Tracked = TrackedText | TrackedInputs
"""Data that remembers what was read of it."""


def tracked_data(
    texts: Mapping[str, AsGiven],
    inputs: Mapping[str, DataSet],
    runner: BlockRunner,
    source: ModelSource,
    *,
    language: bool,
    readings: Readings,
) -> dict[str, Tracked | None]:
    """What a run reads, by what it is for: inputs, each tried on the model, and text.

    Args:
        texts: as it was given.
        inputs: from :func:`opened_inputs`.
        runner: of the model.
        source: its directory.
        language: whether it is a causal language model.
        readings: how rows of texts are read.

    Raises:
        RequestError: as :func:`check_call`, or :func:`~.seen_texts.tracked_text`.
    """
    found: dict[str, Tracked | None] = {}
    for part, given in texts.items():
        if part in inputs:
            if runner.residence is not None or not any(tensor.is_meta for tensor in runner.model.parameters()):
                check_call(runner, inputs[part])
            found[part] = TrackedInputs(inputs[part])
        elif language:
            assert not isinstance(given, GivenBatches), "batches are inputs"
            from .seen_texts import tracked_text  # which imports transformers, as a text needs a tokenizer

            found[part] = tracked_text(given, part, source, readings.for_part(part))
    return found


def check_training(pipeline: Sequence[Pass], inputs: Mapping[str, DataSet]) -> None:
    """Refuse a pass that trains on labels, where the data has none.

    Raises:
        RequestError: naming the pass.
    """
    if (data := inputs.get(RECOVERY)) is not None:
        for step in pipeline:
            if isinstance(step, Recovery):
                step.check_inputs(data)


def check_call(runner: BlockRunner, inputs: DataSet) -> None:
    """Call a model with the first sample.

    Raises:
        RequestError: it cannot be called so, or gives no loss for labels.
    """
    sample = inputs.join(list(inputs.rows(1 << 20, 1)))
    owner = type(runner.model).__name__
    shapes = ", ".join(
        f"{name} {list(value.shape) if isinstance(value, torch.Tensor) else value!r}" for name, value in sample.items()
    )

    def call(model: torch.nn.Module) -> bool:
        output = called_with(sample)(model)
        return hasattr(output, "get") and output.get(OWN_LOSS) is not None

    try:
        (gives_loss,) = runner.run([call])
    except Exception as error:  # whatever a model's own code raises
        if is_out_of_memory(error):
            raise
        raise RequestError(
            f"{owner} cannot be called with the first sample of '{inputs.name}': {class_and_first_line(error)}",
            f"it was called with {shapes}; give the shapes that it takes",
        ) from error
    if inputs.labelled and not gives_loss:
        raise RequestError(
            f"'{inputs.name}' has labels, and {owner} returns no loss for them", "leave the labels out of the data"
        )
