"""A model as the user gave it, by name or loaded, as a directory to begin from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.artifact import RECORD, read_record, write_json
from ..tracer.fitting import check_fit
from ..tracer.loaded import write_loaded
from ..tracer.model import ModelSource, resolve
from .request_checks import Model, check_model
from .seen_texts import TEXTS

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
) -> Iterator[ModelSource]:
    """The directory of a model, for as long as the block runs.

    A loaded model is written to a temporary directory first, which is removed at the end: everything that follows, the
    model that is pruned too, is made from that copy, and the one that was given stays as it is.

    Args:
        model: a Hugging Face model directory, a Hub id, ``demo``, or a loaded model of transformers.
        tokenizer: of a loaded model, where text is read.
        weights: whether the weights are wanted.
        trust_remote_code: whether the model's own code may run.
        allow_pickle: whether weights may be read from a pickle.

    Raises:
        RequestError: as :func:`~.request_checks.check_model`, :func:`~fxprune.tracer.model.resolve`,
            :func:`~fxprune.tracer.fitting.check_fit` and :func:`~fxprune.tracer.loaded.write_loaded`.
    """
    check_model(model, tokenizer)
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        source = resolve(name, weights=weights, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        if weights:
            check_fit(source)
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="fxprune-loaded-") as place:
        source = write_loaded(model, tokenizer, Path(place), weights=weights, trust_remote_code=trust_remote_code)
        _remember_texts(Path(str(model.config.name_or_path or "")), source)
        yield source


def _remember_texts(origin: Path, source: ModelSource) -> None:
    """What the directory that it was loaded from was calibrated and trained on, the loaded model was too."""
    texts = read_record(origin).get(TEXTS) if (origin / RECORD).is_file() else None
    if texts:
        write_json(source.directory / RECORD, {TEXTS: texts})
