"""A model as the user gave it, by name or loaded, as a directory to begin from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.artifact import RECORD, read_record, refuse_module, write_json
from ..runtime.adapter_files import find_adapter
from ..runtime.scratch import ScratchDirectory
from ..tracer.fitting import check_fit
from ..tracer.loaded import write_loaded
from ..tracer.model import ModelSource, resolve
from .inputs.seen_texts import TEXTS
from .merging.layers import has_adapters, merged_copy
from .progress import Progress, silent
from .request_checks import Model, check_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def open_source(
    model: Model,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    weights: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    progress: Progress = silent,
) -> Iterator[ModelSource]:
    """The directory of a model, for as long as the block runs.

    A loaded model is written to a temporary directory first, which is removed at the end: everything that follows, the
    model that is pruned too, is made from that copy, and the one that was given stays as it is. So is a directory whose
    adapter is to be merged.

    Args:
        model: a Hugging Face model directory, a Hub id, ``demo``, or a loaded model of transformers.
        tokenizer: of a loaded model, where text is read.
        weights: whether the weights are wanted.
        trust_remote_code: whether the model's own code may run.
        allow_pickle: whether weights may be read from a pickle.
        merge_adapter: whether an adapter that comes with the model is merged into its weights.
        progress: told when an adapter is merged.

    Raises:
        RequestError: as :func:`~.request_checks.check_model`, :func:`~fxprune.tracer.model.resolve`,
            :func:`~fxprune.tracer.fitting.check_fit`, :func:`~.merging.directory.merged_source` and
            :func:`~fxprune.tracer.loaded.write_loaded`.
    """
    check_model(model, tokenizer, merge_adapter=merge_adapter)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "merge_adapter": merge_adapter}
    if isinstance(model, str | os.PathLike):
        refuse_module(Path(model))
        found = resolve(os.fspath(model), weights=weights, **allowed)
        if weights:
            check_fit(found)
        with _merged(found, weights=weights, progress=progress) as merged:
            yield merged
        return
    if merge_adapter and has_adapters(model):
        progress("merging the adapters into a copy of the loaded model")
        model = merged_copy(model)
    with ScratchDirectory("fxprune-loaded-") as place:
        source = write_loaded(model, tokenizer, place, weights=weights, trust_remote_code=trust_remote_code)
        _remember_texts(Path(str(model.config.name_or_path or "")), source)
        yield source


@contextmanager
def _merged(source: ModelSource, *, weights: bool, progress: Progress) -> Iterator[ModelSource]:
    adapter = find_adapter(source.directory)
    if adapter is None:
        yield source
        return
    from .merging.directory import merged_source  # imports what writes models, which takes a second

    with merged_source(source, adapter, weights=weights, progress=progress) as merged:
        yield merged


def _remember_texts(origin: Path, source: ModelSource) -> None:
    """What the directory that it was loaded from was calibrated and trained on, the loaded model was too."""
    texts = read_record(origin).get(TEXTS) if (origin / RECORD).is_file() else None
    if texts:
        write_json(source.directory / RECORD, {TEXTS: texts})
