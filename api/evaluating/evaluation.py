"""``eval``: compare models on the same text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...ir.errors import RequestError
from ...passes.model.measure import (
    WINDOWS_AT_ONCE,
    Speed,
    parameter_count,
    perplexity,
    tokens_per_second,
)
from ...runtime.place.choices import AUTO
from ...runtime.place.placement import (
    WHOLE,
    Placement,
    PlacementRequest,
    more_frugally,
    told_when_out_of_memory,
)
from ...runtime.ranks import ALONE, Ranks
from ...runtime.scratch import ScratchDirectory
from ...tracer.model import DEMO, ModelSource, load_config, load_tokenizer, predicts_next_token, reads_images
from ..agreement import agree_on_files, on_every_rank
from ..progress import Progress, silent
from ..reading import Readings
from ..request_checks import (
    GivenFiles,
    GivenRows,
    GivenText,
    Model,
    check_counts,
    is_loaded,
    is_path,
    list_models,
    read_text,
)
from ..runnable import Runnable, is_onnx, open_onnx, open_torch
from ..seen_texts import refuse_overlap, refuse_unused, text_of
from ..sources import open_source
from .generations import generations
from .measures import Continuation, Measurement, TaskScore, TextScore
from .tasks import AskedTasks, task_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECODED, REPEATS = 32, 5
"""Tokens that are written, and how often, to time a model; once each where every token reads all weights again."""


@dataclass(frozen=True)
class _Asked:
    """What is measured of every model.

    Attributes:
        texts: as they were given; None for the built-in one.
        readings: how their rows are read.
        window: tokens in a window.
        windows: the most of them; all when None.
        overlap: whether a model may be measured on text that it has seen.
        tasks: of lm-eval.
        prompts: what the models shall go on from.
        new: the most tokens that they write.
        speed: whether they are timed.
    """

    texts: tuple[str | GivenRows | GivenFiles | None, ...]
    readings: Readings
    window: int
    windows: int | None
    overlap: bool
    tasks: AskedTasks
    prompts: tuple[str, ...]
    new: int
    speed: bool


@on_every_rank
def evaluate(
    models: Sequence[Model] | Model,
    text: GivenText | None = None,
    *,
    texts: Sequence[GivenText] = (),
    field: str | None = None,
    split: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    window: int = 128,
    windows: int | None = None,
    tasks: Sequence[str] | str = (),
    tasks_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    trust_task_code: bool = False,
    generate: Sequence[str] | str = (),
    new: int = 32,
    speed: bool = True,
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
    """Measure models, as docs/evaluation.md says; texts and models as in :func:`fxprune.apply`.

    Raises: RequestError for what cannot be read, is too short or was seen by a model, and a window longer than a
        context; FxpruneError for a perplexity that is not finite.
    """
    request = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    found = list_models(models, tokenizer, merge_adapter=merge_adapter)
    given = tuple(read_text(one, "text") for one in ((text,) if text is not None else ()) + tuple(texts))
    names, prompts = _listed(tasks, ","), _listed(generate)
    asked_tasks = AskedTasks(names, Path(tasks_dir).expanduser() if tasks_dir else None, limit, trust_task_code)
    used = given or (() if names or prompts else (None,))
    asked = _Asked(used, Readings.parse(field, split), window, windows, allow_overlap, asked_tasks, prompts, new, speed)
    _check(found, asked)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "merge_adapter": merge_adapter}
    with ExitStack() as stack:
        sources = [stack.enter_context(_open(model, tokenizer, allowed, progress)) for model in found]
        agree_on_files(ranks, sources, *given)
        contexts = [_context(source, window if asked.texts else 2) for source in sources]
        read = [[_read(source, one, asked, progress) for one in asked.texts] for source in sources]
        measuring = _Measuring(asked, request, progress, ranks, {})
        return [measuring.of(*each) for each in zip(sources, read, contexts, strict=True)]


def _listed(given: Sequence[str] | str, sign: str = "") -> tuple[str, ...]:
    """Names or prompts, given as one text or several; names with a sign between them too."""
    found = [given] if isinstance(given, str) else list(given)
    return (
        tuple(part.strip() for one in found for part in one.split(sign) if part) if sign else tuple(filter(None, found))
    )


def _check(found: Sequence[Any], asked: _Asked) -> None:
    if not found:
        raise RequestError("there is no model to measure", "give one, or several")
    if None in asked.texts and DEMO not in [os.fspath(model) for model in found if is_path(model)]:
        raise RequestError("missing --text FILE", "give a text to measure on, or --tasks or --generate")
    check_counts(window=asked.window, windows=asked.windows, limit=asked.tasks.limit, new=asked.new)
    if asked.window < 2:
        raise RequestError(f"--window {asked.window} is too short: there is no next token", "give --window 2 or more")
    if asked.new < 1:
        raise RequestError(f"--new {asked.new} writes no token", "give 1 or more")
    refuse_unused(asked.readings.usual, *asked.texts)
    asked.tasks.check()


def _open(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, allowed: Mapping[str, bool], progress: Progress
) -> AbstractContextManager[ModelSource]:
    own = tokenizer if is_loaded(model) else None
    onnx = is_path(model) and is_onnx(model)
    if onnx:  # an adapter cannot be merged into its weights
        allowed = {**allowed, "merge_adapter": False}
    return open_source(model, own, weights=not onnx, progress=progress, **allowed)


def _read(
    source: ModelSource, given: str | GivenRows | GivenFiles | None, asked: _Asked, progress: Progress
) -> tuple[str, torch.Tensor]:
    """A text's name, and its windows as the model's own tokenizer splits it."""
    progress(f"{source.name}: reading the text")
    text = text_of(given, "evaluation", source, asked.readings.usual)
    ids = text.windows(asked.window, asked.windows)
    if not asked.overlap:
        refuse_overlap(source, ids, text)
    return text.name, ids


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


@dataclass(frozen=True)
class _Measuring:
    """Measures one model after the other.

    Attributes:
        asked: what.
        request: where they run.
        progress: told what is going on.
        ranks: who shares the windows.
        known: what tasks keep for the next model.
    """

    asked: _Asked
    request: PlacementRequest
    progress: Progress
    ranks: Ranks
    known: dict[str, Any]

    def of(self, source: ModelSource, texts: Sequence[tuple[str, torch.Tensor]], context: int) -> Measurement:
        """One model; where memory runs out, again with its weights kept more frugally."""

        def attempt(frugal: Placement | None) -> Measurement:
            place = self.request if frugal is None else replace(self.request, offload=frugal.offload)
            return self._measure(source, texts, context, place)

        if self.ranks.count > 1:  # the other processes would wait for this one
            return attempt(None)
        return more_frugally(attempt, self.request, self.progress)

    def _measure(
        self, source: ModelSource, texts: Sequence[tuple[str, torch.Tensor]], context: int, place: PlacementRequest
    ) -> Measurement:
        asked, told, window = self.asked, self.progress, min(self.asked.window, context)
        told(f"{source.name}: loading")
        forward = (min(WINDOWS_AT_ONCE, max((len(ids) for _, ids in texts), default=1)), window)
        with ScratchDirectory("fxprune-weights-") as scratch:
            if is_onnx(source.directory):
                runnable = open_onnx(source)
            else:
                runnable = open_torch(source, place, forward, told, window=window, scratch=lambda: scratch)
            with told_when_out_of_memory(runnable.placement or WHOLE):
                found = [self._text_score(source, runnable, *each) for each in texts]
                speed = self._speed(source, runnable, context) if asked.speed else None
                tasks, written = self.ranks.by_first(lambda: self._answers(source, runnable, context))
            return Measurement(
                name=source.name,
                format=runnable.format,
                parameters=parameter_count(runnable.module),
                bytes=runnable.bytes,
                macs=runnable.macs(window),
                perplexity=found[0].perplexity if found else None,
                speed=speed,
                placement=runnable.placement,
                texts=tuple(found),
                tasks=tasks,
                generations=written,
            )

    def _text_score(self, source: ModelSource, runnable: Runnable, name: str, ids: torch.Tensor) -> TextScore:
        self.progress(f"{source.name}: perplexity over {len(ids)} windows of {ids.shape[1]}")
        found = perplexity(runnable.logits, ids, ranks=self.ranks)
        return TextScore(name, found, hashlib.sha256(ids.numpy().tobytes()).hexdigest())

    def _speed(self, source: ModelSource, runnable: Runnable, context: int) -> Speed:
        self.progress(f"{source.name}: speed")
        vocabulary = load_config(source).get_text_config().vocab_size
        prompt = max(1, min(self.asked.window, context - DECODED))
        repeats, new = (1, 1) if runnable.offloaded else (REPEATS, min(DECODED, context - prompt))
        return self.ranks.by_first(
            lambda: tokens_per_second(runnable.step, vocabulary, prompt=prompt, new=new, repeats=repeats)
        )

    def _answers(
        self, source: ModelSource, runnable: Runnable, context: int
    ) -> tuple[tuple[TaskScore, ...], tuple[Continuation, ...]]:
        """Tasks and generated text."""
        asked, tasks = self.asked, self.asked.tasks
        if not tasks.names and not asked.prompts:
            return (), ()
        tokenizer = load_tokenizer(source)
        scores: tuple[TaskScore, ...] = ()
        written: tuple[Continuation, ...] = ()
        if tasks.names:
            self.progress(f"{source.name}: tasks {', '.join(tasks.names)}")
            scores = task_scores(runnable, tokenizer, tasks, context=context, known=self.known)
        if asked.prompts:
            self.progress(f"{source.name}: generating")
            written = generations(runnable, tokenizer, asked.prompts, new=asked.new, context=context)
        return scores, written
