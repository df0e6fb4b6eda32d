"""``eval``: compare models on the same text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..ir.errors import RequestError
from ..ir.extras import EXTRAS, require
from ..passes.model.measure import (
    WINDOWS_AT_ONCE,
    Perplexity,
    Speed,
    parameter_count,
    perplexity,
    tokens_per_second,
)
from ..runtime.place.choices import AUTO
from ..runtime.place.placement import (
    WHOLE,
    Placement,
    PlacementRequest,
    more_frugally,
    told_when_out_of_memory,
)
from ..runtime.ranks import ALONE, Ranks
from ..runtime.scratch import ScratchDirectory
from ..tracer.model import DEMO, ModelSource, load_config, predicts_next_token, reads_images
from .agreement import agree_on_files, on_every_rank
from .progress import Progress, silent
from .request_checks import GivenRows, GivenText, Model, check_counts, is_loaded, is_path, list_models, read_text
from .runnable import is_onnx, open_onnx, open_torch
from .seen_texts import refuse_overlap, text_of
from .sources import open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECODED, REPEATS = 32, 5
"""Tokens that are written, and how often, to time a model; once each where every token reads all weights again."""


@dataclass(frozen=True)
class Measurement:
    """The measured values of one model.

    Attributes:
        name: the model as the user gave it.
        format: ``safetensors``, ``pickle`` or ``onnx``.
        parameters: number of parameters; a tied one is counted once.
        bytes: size of the weight files.
        macs: multiply-accumulates for one window, counted in the traced graph.
        perplexity: on the text.
        speed: tokens per second for one sequence on this machine; where weights are brought into memory block by block,
            with the time that takes.
        placement: where it ran; None for ONNX Runtime, which runs on the CPU.
    """

    name: str
    format: str
    parameters: int
    bytes: int
    macs: int
    perplexity: Perplexity
    speed: Speed
    placement: Placement | None = None

    def to_json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(dataclasses.replace(self, placement=None))
        return {**plain, "placement": self.placement.to_json() if self.placement else None}


@on_every_rank
def evaluate(
    models: Sequence[Model] | Model,
    text: GivenText | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    window: int = 128,
    windows: int | None = None,
    device: str | torch.device = AUTO,
    dtype: str | torch.dtype = AUTO,
    offload: str = AUTO,
    max_memory: str | int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    allow_overlap: bool = False,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> list[Measurement]:
    """Measure models: perplexity over non-overlapping windows, size, and speed.

    Perplexities of models with different tokenizers do not compare.

    Args:
        models: as in :func:`fxprune.apply`, and what :func:`fxprune.export` wrote.
        text: held-out text: a file, a ``datasets`` id or a list of strings; ``demo`` brings its own.
        tokenizer: of the loaded models.
        window: tokens in a window (128 as in LLM-Pruner, arXiv 2305.11627).
        windows: how many; all that the text holds when None.
        device, dtype, offload, max_memory: where the models run, as in :func:`fxprune.apply`.
        trust_remote_code, allow_pickle, merge_adapter: as in :func:`fxprune.apply`.
        allow_overlap: whether a model may be measured on text that it was calibrated or trained on.
        progress: told what is going on.
        ranks: the processes that share the windows, as in :func:`fxprune.apply`; all return the same.

    Raises:
        RequestError: a model or text that cannot be read, a text shorter than the windows asked for, a window longer
            than a model's context, or text that a model has seen.
        FxpruneError: a perplexity that is not finite.
    """
    request = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    found, given = list_models(models, tokenizer, merge_adapter=merge_adapter), read_text(text, "text")
    _check(found, given, window, windows)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "merge_adapter": merge_adapter}
    with ExitStack() as stack:
        sources = [stack.enter_context(_open(model, tokenizer, allowed, progress)) for model in found]
        agree_on_files(ranks, sources, text)
        contexts = [_context(source, window) for source in sources]
        read = [_read(source, given, window, windows, progress, overlap=allow_overlap) for source in sources]
        return [_measured(*each, request, progress, ranks=ranks) for each in zip(sources, read, contexts, strict=True)]


def _check(found: Sequence[Any], given: str | GivenRows | None, window: int, windows: int | None) -> None:
    if not found:
        raise RequestError("there is no model to measure", "give one, or several")
    if any(is_path(model) and is_onnx(model) for model in found):
        require("an ONNX directory", *EXTRAS["onnx"])
    if given is None and DEMO not in [os.fspath(model) for model in found if is_path(model)]:
        raise RequestError("missing --text FILE", "give a text to measure on")
    check_counts(window=window, windows=windows)
    if window < 2:
        raise RequestError(f"--window {window} is too short: there is no next token", "give --window 2 or more")


def _open(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, allowed: Mapping[str, bool], progress: Progress
) -> AbstractContextManager[ModelSource]:
    own = tokenizer if is_loaded(model) else None
    onnx = is_path(model) and is_onnx(model)
    if onnx:  # an adapter cannot be merged into its weights
        allowed = {**allowed, "merge_adapter": False}
    return open_source(model, own, weights=not onnx, progress=progress, **allowed)


def _read(
    source: ModelSource,
    given: str | GivenRows | None,
    window: int,
    windows: int | None,
    progress: Progress,
    *,
    overlap: bool,
) -> torch.Tensor:
    """The windows of the text, as the model's own tokenizer splits it."""
    progress(f"{source.name}: reading the text")
    text = text_of(given, "evaluation", source)
    ids = text.windows(window, windows)
    if not overlap:
        refuse_overlap(source, ids, text)
    return ids


def _require_language(source: ModelSource) -> None:
    """Check that a model writes text, token by token: perplexity is of such models."""
    config = load_config(source)
    if predicts_next_token(config) or reads_images(config):
        return
    name = (config.architectures or [config.model_type])[0]
    raise RequestError(
        f"{source.name!r} is a {name}, which is no causal language model: it has no perplexity",
        "compare its outputs with those of the dense model: docs/inputs/other-models.md measures an encoder and a "
        "speech model",
    )


def _context(source: ModelSource, window: int) -> int:
    """The number of tokens in the context of a language model."""
    _require_language(source)
    context: int = getattr(load_config(source).get_text_config(), "max_position_embeddings", None) or window
    if window > context:
        raise RequestError(
            f"--window {window} is longer than the context of {source.name!r}, {context} tokens",
            f"give --window {context} or less",
        )
    return context


def _measured(
    source: ModelSource,
    ids: torch.Tensor,
    context: int,
    request: PlacementRequest,
    progress: Progress,
    *,
    ranks: Ranks,
) -> Measurement:
    def attempt(frugal: Placement | None) -> Measurement:
        asked = request if frugal is None else replace(request, offload=frugal.offload)
        return _measure(source, ids, context, asked, progress, ranks=ranks)

    if ranks.count > 1:  # the other processes would wait for this one
        return attempt(None)
    return more_frugally(attempt, request, progress)


def _measure(
    source: ModelSource,
    ids: torch.Tensor,
    context: int,
    request: PlacementRequest,
    progress: Progress,
    *,
    ranks: Ranks,
) -> Measurement:
    config, window = load_config(source).get_text_config(), ids.shape[1]
    progress(f"{source.name}: loading")
    forward = (min(WINDOWS_AT_ONCE, len(ids)), window)
    prompt = max(1, min(window, context - DECODED))
    with ScratchDirectory("fxprune-weights-") as scratch:
        if is_onnx(source.directory):
            runnable = open_onnx(source)
        else:
            runnable = open_torch(source, request, forward, progress, window=window, scratch=lambda: scratch)
        repeats, new = (1, 1) if runnable.offloaded else (REPEATS, min(DECODED, context - prompt))
        with told_when_out_of_memory(runnable.placement or WHOLE):
            progress(f"{source.name}: perplexity over {len(ids)} windows of {window}")
            found = perplexity(runnable.logits, ids, ranks=ranks)
            progress(f"{source.name}: speed")
            speed = ranks.by_first(
                lambda: tokens_per_second(runnable.step, config.vocab_size, prompt=prompt, new=new, repeats=repeats)
            )
        return Measurement(
            name=source.name,
            format=runnable.format,
            parameters=parameter_count(runnable.module),
            bytes=runnable.bytes,
            macs=runnable.macs(window),
            perplexity=found,
            speed=speed,
            placement=runnable.placement,
        )
