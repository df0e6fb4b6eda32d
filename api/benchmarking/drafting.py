"""``bench --draft``: a pruned model drafts for the model it was made of, and the output stays that of the large one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...ir.errors import FxpruneError, RequestError, first_line
from ...passes.model.measure import parameter_count
from ...passes.select.latency import clock_on
from ...runtime.place.choices import AUTO
from ...runtime.place.placement import PlacementRequest
from ...runtime.quiet import quiet
from ...runtime.streaming.block_runner import BlockRunner
from ...tracer.model import DEMO, ModelSource, load_config, load_tokenizer
from ..inputs.seen_texts import refuse_overlap, text_of
from ..progress import Progress, silent
from ..request_checks import GivenText, Model, check_at_least_one, check_counts, list_models, read_text
from ..runnable import is_onnx, open_torch, require_tokens
from ..sources import open_source
from .timings import RoundSpread, spread_of


@dataclass(frozen=True)
class Drafted:
    """A model with another one that drafts for it (speculative decoding, arXiv 2211.17192, here greedy).

    Attributes:
        dense, draft: as the user gave them.
        parameters: of both.
        text: what the prompts are from.
        prompts, prompt, new: how many there are, tokens in each, and tokens written after each.
        tokens: how many tokens the draft may write before the model reads them.
        steps: how often the model read something, for all prompts.
        drafted: how many tokens the draft wrote.
        accepted: drafted tokens that were kept per step of the model; each step adds one of its own.
        alone, assisted: tokens per second of the model alone, and with the draft.
        speedup: time of the model alone divided by that with the draft, in the same round.
        larger_batches: why more than one sequence at once was not timed.
        threads: within one operator.
        unchecked: a sentence for each text that the draft read, where an overlap with that of the prompts would not be
            found.
        rounds: how often both were timed.
    """

    dense: str
    draft: str
    parameters: tuple[int, int]
    text: str
    prompts: int
    prompt: int
    new: int
    tokens: int
    steps: int
    drafted: int
    accepted: float
    alone: RoundSpread
    assisted: RoundSpread
    speedup: RoundSpread
    larger_batches: str
    threads: int
    unchecked: tuple[str, ...] = ()
    rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return dataclasses.asdict(self)


def bench_draft(
    dense: Model,
    draft: Model,
    text: GivenText | None = None,
    *,
    prompts: int = 4,
    prompt: int = 128,
    new: int = 32,
    draft_tokens: int = 5,
    rounds: int = 5,
    threads: int | None = None,
    allow_overlap: bool = False,
    device: str | torch.device = AUTO,
    dtype: str | torch.dtype = AUTO,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    progress: Progress = silent,
) -> Drafted:
    """Time transformers' assisted generation against the model alone, greedy, one sequence at a time.

    Args:
        dense: the model whose output is wanted.
        draft: one that writes ahead, with the same tokens; usually the model pruned.
        text: held-out text, whose first windows are the prompts; the built-in one for ``demo`` when None.
        prompts, prompt, new: how many prompts, tokens in each, and tokens written after each.
        draft_tokens: how many tokens the draft writes before the model reads them.
        rounds: how often both are timed, in turn, after one round that does not count.
        threads: of one operator; torch's choice for this machine when None. With one thread on a CPU, CPU time counts.
        allow_overlap: whether the draft may have been calibrated or trained on the text.
        device, dtype: where both run, as in :func:`fxprune.apply`.
        trust_remote_code, allow_pickle, merge_adapter, progress: as in :func:`fxprune.evaluate`.

    Raises:
        RequestError: a model that is not found or has other tokens than the other one; too little text.
        FxpruneError: the output is not that of the model alone, or one of the two does not run.
    """
    counts = _Counts(prompts, prompt, new, draft_tokens, rounds, threads)
    where = PlacementRequest.parse(device=device, dtype=dtype, offload="none", max_memory=None)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "merge_adapter": merge_adapter}
    with ExitStack() as stack, _threads(counts.checked().threads):
        sources = _opened((dense, draft), text, allowed, stack, progress)
        asked = _prompts(text, *sources, counts, allow_overlap)
        return _drafted(*sources, asked, counts=counts, where=where, progress=progress)


@dataclass(frozen=True)
class _Counts:
    prompts: int
    prompt: int
    new: int
    draft_tokens: int
    rounds: int
    threads: int | None

    def checked(self) -> _Counts:
        """Itself, if there is something to time."""
        counts = dataclasses.asdict(self)
        check_counts(**counts)
        check_at_least_one(**counts)
        return self


def _opened(
    models: tuple[Model, Model], text: GivenText | None, allowed: dict[str, bool], stack: ExitStack, progress: Progress
) -> tuple[ModelSource, ModelSource]:
    """The directories of the model and of the draft, for as long as ``stack`` lasts."""
    found = [one for model in models for one in list_models(model, merge_adapter=allowed["merge_adapter"])]
    if len(found) != len(models):
        raise RequestError(f"a draft is for one model, and there are {len(found)} models", "give one model, one draft")
    if text is None and found[0] != DEMO:
        raise RequestError("--draft needs text for its prompts", "give --text FILE with text like the later input")
    dense, draft = (stack.enter_context(open_source(one, progress=progress, **allowed)) for one in found)
    _check_same_tokens(dense, draft)
    return dense, draft


def _prompts(
    text: GivenText | None, dense: ModelSource, draft: ModelSource, counts: _Counts, allow_overlap: bool
) -> tuple[str, torch.Tensor, tuple[str, ...]]:
    """The name of the text, the first windows of it, and what :func:`refuse_overlap` says of it."""
    asked = text_of(read_text(text, "text"), "evaluation", dense)
    windows = asked.windows(counts.prompt, counts.prompts)
    return asked.name, windows, () if allow_overlap else refuse_overlap(draft, windows, asked)


def _drafted(
    dense: ModelSource,
    draft: ModelSource,
    prompts: tuple[str, torch.Tensor, tuple[str, ...]],
    *,
    counts: _Counts,
    where: PlacementRequest,
    progress: Progress,
) -> Drafted:
    models = []
    for source in (dense, draft):
        progress(f"loading {source.name}")
        opened = open_torch(source, where, (1, counts.prompt + counts.new), progress, window=counts.prompt).logits
        assert isinstance(opened, BlockRunner), "without offload, a module"
        models.append(opened.model)
    name, windows, unchecked = prompts
    race = Race(models[0], models[1], windows, counts.new, counts.draft_tokens)
    found = race.run(counts.rounds, progress)
    return Drafted(
        dense.name, draft.name, (parameter_count(models[0]), parameter_count(models[1])), name, counts.prompts,
        counts.prompt, counts.new, counts.draft_tokens, *found, race.larger_batches(), torch.get_num_threads(),
        unchecked, counts.rounds,
    )  # fmt: skip


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _check_same_tokens(dense: ModelSource, draft: ModelSource) -> None:
    """Refuse a draft that is called otherwise, or whose tokens are others.

    Raises:
        RequestError: with what differs.
    """
    for source in (dense, draft):
        if is_onnx(source.directory):
            raise RequestError(
                f"{source.name} is an ONNX directory, and assisted generation is transformers'",
                "give the directory that it was exported from",
            )
        require_tokens(source)
    sizes = [int(load_config(source).get_text_config().vocab_size) for source in (dense, draft)]
    hint = "a draft writes tokens of the model: prune the model itself, or one with the same tokenizer"
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"--draft {draft.name} has another vocabulary: {sizes[1]:,} tokens, where {dense.name} has {sizes[0]:,}",
            hint,
        )
    words = [load_tokenizer(source).get_vocab() for source in (dense, draft)]
    if words[0] != words[1]:
        odd = next(iter(sorted(word for word in words[0] | words[1] if words[0].get(word) != words[1].get(word))))
        raise RequestError(
            f"--draft {draft.name} has another tokenizer: {odd!r} is token {words[1].get(odd)}, and token "
            f"{words[0].get(odd)} of {dense.name}",
            hint,
        )


class Race:
    """Greedy generation of a model, alone and with a draft.

    Args:
        dense, draft: of transformers, on one device; they are counted until :meth:`close`.
        windows: the prompts, int64 ``[N, L]``.
        new: tokens that are written after each.
        tokens: how many of them the draft writes at a time.
    """

    def __init__(self, dense: Any, draft: Any, windows: torch.Tensor, new: int, tokens: int) -> None:
        self._dense, self._draft, self._new, self._drafting = dense, draft, new, tokens
        self._device = str(next(dense.parameters()).device)
        self._windows = windows.to(self._device)
        self._calls = [0, 0]
        self._hooks = [model.register_forward_hook(self._counting(at)) for at, model in enumerate((dense, draft))]

    def close(self) -> None:
        """Leave the models as they were."""
        for hook in self._hooks:
            hook.remove()

    def _counting(self, at: int) -> Any:
        def hook(*_: Any) -> None:
            self._calls[at] += 1

        return hook

    def run(self, rounds: int, progress: Progress) -> tuple[int, int, float, RoundSpread, RoundSpread, RoundSpread]:
        """Steps, drafted and accepted tokens; speeds, and the ratios of the rounds."""
        progress("warming up")
        expected = [self._written(ids[None], None) for ids in self._windows]
        self._calls = [0, 0]
        for number, ids in enumerate(self._windows):
            self._compare(self._written(ids[None], self._draft), expected[number], number)
        steps, drafted = self._calls
        times = []
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            pair = [self._seconds(None), self._seconds(self._draft)] if number % 2 == 0 else [
                self._seconds(self._draft), self._seconds(None)][::-1]  # fmt: skip
            times.append(pair)
        written = len(self._windows) * self._new
        alone, assisted = (spread_of([written / pair[at] for pair in times]) for at in (0, 1))
        accepted = (written - steps) / steps
        return steps, drafted, accepted, alone, assisted, spread_of([pair[0] / pair[1] for pair in times])

    def larger_batches(self) -> str:
        """What transformers says to two sequences at once; "" when it writes them."""
        try:
            self._written(self._windows[:1].repeat(2, 1), self._draft, new=2)
        except ValueError as error:
            return f"transformers says: {first_line(error)}"
        return "not timed"

    def _compare(self, found: torch.Tensor, expected: torch.Tensor, prompt: int) -> None:
        if torch.equal(found, expected):
            return
        shared = min(found.shape[1], expected.shape[1])
        same = int((found[:, :shared] == expected[:, :shared]).long().cumprod(1).sum())
        raise FxpruneError(
            f"with the draft, prompt {prompt + 1} goes on otherwise after {same - self._windows.shape[1]} tokens than "
            "without it",
            "rounding differs where several tokens are read at once: give --dtype float32",
        )

    def _seconds(self, draft: Any) -> float:
        clock = clock_on(self._device)
        start = clock()
        for ids in self._windows:
            self._written(ids[None], draft).cpu()  # which waits for the device
        return clock() - start

    def _written(self, ids: torch.Tensor, draft: Any, new: int | None = None) -> torch.Tensor:
        from transformers import GenerationConfig

        fill = self._dense.config.get_text_config().pad_token_id or 0
        plain = GenerationConfig(do_sample=False, max_new_tokens=new or self._new, pad_token_id=fill)
        if draft is not None:
            draft.generation_config = GenerationConfig(
                do_sample=False, pad_token_id=fill, num_assistant_tokens=self._drafting,
                num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0,
            )  # fmt: skip
        before, self._dense.generation_config = self._dense.generation_config, plain
        try:
            with quiet(), torch.no_grad():
                found: torch.Tensor = self._dense.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=plain, assistant_model=draft
                )
        finally:
            self._dense.generation_config = before
        return found
