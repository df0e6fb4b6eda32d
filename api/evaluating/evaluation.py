"""``eval``: compare models on the same text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...ir.errors import RequestError
from ...ir.extras import EXTRAS, require
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
from ...tracer.model import DEMO, ModelSource, load_config, load_tokenizer
from ..agreement import agree_on_files, on_every_rank
from ..inputs.reading import GivenReading, Reading, Readings
from ..inputs.seen_texts import refuse_overlap, refuse_unused, text_of
from ..progress import Progress, silent
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
from ..runnable import Runnable, is_onnx, open_onnx, open_torch, require_language
from ..sources import open_source
from .generations import generations
from .measures import Continuation, Measurement, TaskScore, TextScore
from .tasks import AskedTasks, task_scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECODED, REPEATS = 32, 3
"""Tokens that are written, and how often, to time a model; once each where every token reads all weights again."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What is measured of which models: the arguments of :func:`evaluate`.

    Attributes:
        models: as in :func:`fxprune.apply`, and what :func:`fxprune.export` wrote.
        text: held-out text: a file, a ``datasets`` id or a list of strings; several of these as a list of
            ``pathlib.Path``, each measured for itself. ``demo`` brings its own; none is needed for tasks and prompts.
        field, split: how rows of texts are read, as in :func:`fxprune.apply`.
        tokenizer: of the loaded models.
        window: tokens in a window (128 as in LLM-Pruner, arXiv 2305.11627).
        windows: how many; all that the text holds when None.
        tasks: names of tasks of lm-eval, in a list or with commas between them.
        tasks_dir: where they are looked for first.
        limit: measures the first items of each task alone; all when None.
        trust_task_code: whether tasks in that directory may run code.
        generate: prompts that the models go on from, always with the most probable token.
        new: the most tokens that they write.
        speed: whether they are timed.
        place: ``device``, ``dtype``, ``offload`` and ``max_memory``: where the models run, as in :func:`fxprune.apply`.
        trust_remote_code, allow_pickle, merge_adapter: as in :func:`fxprune.apply`.
        allow_overlap: whether a model may be measured on text that it was calibrated or trained on.
        progress: told what is going on.
        ranks: the processes that share the windows, as in :func:`fxprune.apply`; all return the same.
    """

    models: Sequence[Model] | Model
    text: GivenText | None
    field: GivenReading
    split: GivenReading
    tokenizer: PreTrainedTokenizerBase | None
    window: int
    windows: int | None
    tasks: Sequence[str] | str
    tasks_dir: str | os.PathLike[str] | None
    limit: int | None
    trust_task_code: bool
    generate: Sequence[str] | str
    new: int
    speed: bool
    place: PlacementRequest
    trust_remote_code: bool
    allow_pickle: bool
    merge_adapter: bool
    allow_overlap: bool
    progress: Progress
    ranks: Ranks

    @cached_property
    def texts(self) -> tuple[str | GivenRows | None, ...]:
        """As they were given; None for the built-in one."""
        given = read_text(self.text, "text")
        if isinstance(given, GivenFiles):
            return given.paths
        return () if given is None and (self.prompts or self.asked_tasks.names) else (given,)

    @cached_property
    def reading(self) -> Reading:
        """How rows of texts are read."""
        return Readings.parse(self.field, self.split).usual

    @cached_property
    def asked_tasks(self) -> AskedTasks:
        """Which tasks."""
        folder = None if self.tasks_dir is None else Path(self.tasks_dir).expanduser()
        return AskedTasks(_listed(self.tasks, ","), folder, self.limit, self.trust_task_code)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """What the models go on from."""
        return _listed(self.generate)

    def run(self) -> list[Measurement]:
        """Check the request, and measure.

        Raises:
            RequestError: a model, text or task that cannot be read, a text shorter than the windows asked for, a window
                longer than a model's context, or text that a model has seen.
            FxpruneError: a perplexity that is not finite.
        """
        found = list_models(self.models, self.tokenizer, merge_adapter=self.merge_adapter)
        _check(found, self)
        allowed = {name: getattr(self, name) for name in ("trust_remote_code", "allow_pickle", "merge_adapter")}
        with ExitStack() as stack:
            sources = [stack.enter_context(_open(one, self.tokenizer, allowed, self.progress)) for one in found]
            agree_on_files(self.ranks, sources, *self.texts)
            contexts = [_context(source, self.window if self.texts else 2) for source in sources]
            read = [[_read(source, one, self) for one in self.texts] for source in sources]
            measuring = _Measuring(self, {})
            return [measuring.of(*each) for each in zip(sources, read, contexts, strict=True)]


@on_every_rank
def evaluate(
    models: Sequence[Model] | Model,
    text: GivenText | None = None,
    *,
    field: GivenReading = None,
    split: GivenReading = None,
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
    """Measure models: perplexity over non-overlapping windows, tasks, size, and speed; the arguments and errors are
    those of :class:`EvaluationRequest`. Perplexities of models with different tokenizers do not compare."""
    place = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    return EvaluationRequest(models=models, text=text, field=field, split=split, tokenizer=tokenizer, window=window,
        windows=windows, tasks=tasks, tasks_dir=tasks_dir, limit=limit, trust_task_code=trust_task_code,
        generate=generate, new=new, speed=speed, place=place, trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle, merge_adapter=merge_adapter, allow_overlap=allow_overlap, progress=progress,
        ranks=ranks).run()  # fmt: skip


def _listed(given: Sequence[str] | str, sign: str = "") -> tuple[str, ...]:
    """Names or prompts, given as one text or several; names with a sign between them too."""
    found = [given] if isinstance(given, str) else list(given)
    return (
        tuple(part.strip() for one in found for part in one.split(sign) if part) if sign else tuple(filter(None, found))
    )


def _check(found: Sequence[Any], asked: EvaluationRequest) -> None:
    if not found:
        raise RequestError("there is no model to measure", "give one, or several")
    if any(is_path(model) and is_onnx(model) for model in found):
        require("an ONNX directory", *EXTRAS["onnx"])
    texts = asked.texts
    if None in texts and DEMO not in [os.fspath(model) for model in found if is_path(model)]:
        raise RequestError("missing --text FILE", "give a text to measure on, or --tasks or --generate")
    check_counts(window=asked.window, windows=asked.windows, limit=asked.limit, new=asked.new)
    if asked.window < 2:
        raise RequestError(f"--window {asked.window} is too short: there is no next token", "give --window 2 or more")
    if asked.new < 1:
        raise RequestError(f"--new {asked.new} writes no token", "give 1 or more")
    refuse_unused(asked.reading, *texts)
    asked.asked_tasks.check()


def _open(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, allowed: Mapping[str, bool], progress: Progress
) -> AbstractContextManager[ModelSource]:
    own = tokenizer if is_loaded(model) else None
    onnx = is_path(model) and is_onnx(model)
    if onnx:  # an adapter cannot be merged into its weights
        allowed = {**allowed, "merge_adapter": False}
    return open_source(model, own, weights=not onnx, progress=progress, **allowed)


@dataclass(frozen=True)
class _ReadText:
    """A text as the model's own tokenizer splits it.

    Attributes:
        name: of the text.
        ids: its windows.
        unchecked: from :func:`~..inputs.seen_texts.refuse_overlap`.
    """

    name: str
    ids: torch.Tensor
    unchecked: tuple[str, ...]


def _read(source: ModelSource, given: str | GivenRows | None, asked: EvaluationRequest) -> _ReadText:
    asked.progress(f"{source.name}: reading the text")
    text = text_of(given, "evaluation", source, asked.reading)
    ids = text.windows(asked.window, asked.windows)
    return _ReadText(text.name, ids, () if asked.allow_overlap else refuse_overlap(source, ids, text))


def _require_language(source: ModelSource) -> None:
    """Check that a model writes text: perplexity is of such models."""
    require_language(
        source,
        "it has no perplexity",
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
        asked: what is measured.
        known: what tasks keep for the next model.
    """

    asked: EvaluationRequest
    known: dict[str, Any]

    def of(self, source: ModelSource, texts: Sequence[_ReadText], context: int) -> Measurement:
        """One model; where memory runs out, again with its weights kept more frugally."""

        def attempt(frugal: Placement | None) -> Measurement:
            place = self.asked.place if frugal is None else replace(self.asked.place, offload=frugal.offload)
            return self._measure(source, texts, context, place)

        if self.asked.ranks.count > 1:  # the other processes would wait for this one
            return attempt(None)
        return more_frugally(attempt, self.asked.place, self.asked.progress)

    def _measure(
        self, source: ModelSource, texts: Sequence[_ReadText], context: int, place: PlacementRequest
    ) -> Measurement:
        asked, told, window = self.asked, self.asked.progress, min(self.asked.window, context)
        told(f"{source.name}: loading")
        forward = (min(WINDOWS_AT_ONCE, max((len(text.ids) for text in texts), default=1)), window)
        with ScratchDirectory("fxprune-weights-") as scratch:
            if is_onnx(source.directory):
                runnable = open_onnx(source)
            else:
                runnable = open_torch(source, place, forward, told, window=window, scratch=lambda: scratch)
            with told_when_out_of_memory(runnable.placement or WHOLE):
                found = [self._text_score(source, runnable, text) for text in texts]
                speed = self._speed(source, runnable, context) if asked.speed else None
                tasks, written = self.asked.ranks.by_first(lambda: self._answers(source, runnable, context))
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

    def _text_score(self, source: ModelSource, runnable: Runnable, text: _ReadText) -> TextScore:
        ids = text.ids
        self.asked.progress(f"{source.name}: perplexity over {len(ids)} windows of {ids.shape[1]}")
        found = perplexity(runnable.logits, ids, ranks=self.asked.ranks)
        return TextScore(text.name, found, hashlib.sha256(ids.numpy().tobytes()).hexdigest(), text.unchecked)

    def _speed(self, source: ModelSource, runnable: Runnable, context: int) -> Speed:
        self.asked.progress(f"{source.name}: speed")
        vocabulary = load_config(source).get_text_config().vocab_size
        prompt = max(1, min(self.asked.window, context - DECODED))
        repeats, new = (1, 1) if runnable.offloaded else (REPEATS, min(DECODED, context - prompt))
        return self.asked.ranks.by_first(
            lambda: tokens_per_second(runnable.step, vocabulary, prompt=prompt, new=new, repeats=repeats)
        )

    def _answers(
        self, source: ModelSource, runnable: Runnable, context: int
    ) -> tuple[tuple[TaskScore, ...], tuple[Continuation, ...]]:
        """Tasks and generated text."""
        asked, tasks = self.asked, self.asked.asked_tasks
        if not tasks.names and not asked.prompts:
            return (), ()
        tokenizer = load_tokenizer(source)
        scores: tuple[TaskScore, ...] = ()
        written: tuple[Continuation, ...] = ()
        if tasks.names:
            self.asked.progress(f"{source.name}: tasks {', '.join(tasks.names)}")
            scores = task_scores(runnable, tokenizer, tasks, context=context, known=self.known)
        if asked.prompts:
            self.asked.progress(f"{source.name}: generating")
            written = generations(runnable, tokenizer, asked.prompts, new=asked.new, context=context)
        return scores, written
