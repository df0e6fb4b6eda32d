"""Where the models of a call run: what the user asked for, and what the models need, as one placement for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..ir.errors import RequestError
from ..passes.base import Pass
from ..passes.model.blocks import find_blocks
from ..runtime.place.needs import Needs, needs_of
from ..runtime.place.placement import Placement, PlacementRequest, place
from ..runtime.streaming.mapped_files import STORED_DTYPES, Checkpoint
from ..tracer.checkpoint import weight_files
from ..tracer.model import ModelSource, build_meta

Forward = tuple[int, int]
"""Sequences, and tokens in each, of one forward pass."""

SMALLEST: Forward = (1, 128)
"""Where nothing says how long texts are."""


def stored_dtype(checkpoint: Checkpoint | None, config: Any) -> torch.dtype:
    """The dtype of the files; if they mix several, or cannot be looked into, that of the configuration."""
    kinds = checkpoint.dtypes if checkpoint is not None else set()
    found = STORED_DTYPES.get(next(iter(kinds))) if len(kinds) == 1 else None
    return found or getattr(config, "dtype", None) or torch.float32


def checkpoint_of(source: ModelSource) -> Checkpoint | None:
    """The safetensors files of the source; None when its weights are a pickle."""
    files = weight_files(source.directory, allow_pickle=source.consent.pickle)
    return Checkpoint(files) if files[0].suffix == ".safetensors" else None


def place_model(
    request: PlacementRequest, source: ModelSource, config: Any, *, forward: Forward, sums: bool = False
) -> Placement:
    """Decide where a model of transformers runs.

    Args:
        request: what the user asked for.
        source: the model.
        config: its configuration.
        forward: the largest forward pass.
        sums: as in :func:`~fxprune.runtime.place.placement.place`.

    Raises:
        RequestError: as there.
    """
    stored = stored_dtype(checkpoint_of(source), config)
    batch, length = forward

    def needs(dtype: torch.dtype) -> Needs:
        model = build_meta(config, consent=source.consent)
        try:
            blocks = find_blocks(model).modules
        except RequestError:
            blocks = ()
        vocabulary = getattr(config.get_text_config(), "vocab_size", None) or 0
        return needs_of(
            model, blocks, dtype=dtype, stored=stored, batch=batch, length=length, vocabulary=vocabulary
        )  # fmt: skip

    return place(request, stored=stored, needs=needs, sums=sums)


def largest_forward(pipeline: Iterable[Pass]) -> Forward:
    """The largest forward pass of some passes: the one with the most tokens."""
    found = [SMALLEST]
    for step in pipeline:
        rows = next((getattr(step, name) for name in ("micro_batch", "batch", "samples") if hasattr(step, name)), 1)
        found.append((int(rows), int(getattr(step, "length", SMALLEST[1]))))
    return max(found, key=lambda forward: forward[0] * forward[1])
