"""Measures a model: perplexity, parameters, bytes, tokens per second."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ...ir.errors import FxpruneError, RequestError
from ...runtime.ranks import ALONE, Ranks
from ...runtime.reporting import counted
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.turns import Around
from .forward import decoded, logits_of

Step = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]
"""One forward pass with a cache: (ids ``[1, n]``, cache or None) -> (logits ``[1, n, V]``, cache)."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on a text.

    Attributes:
        value: ``exp(nll)``.
        nll: mean negative log-likelihood of a predicted token, in nats.
        tokens: number of predicted tokens: all but the first of each window.
        windows: number of windows.
        by_window: the mean negative log-likelihood of each window, all of which are equally long.
    """

    value: float
    nll: float
    tokens: int
    windows: int
    by_window: tuple[float, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Rate:
    """Tokens per second over several runs.

    Attributes:
        median: median of the runs.
        low, high: the slowest and the fastest run.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one sequence (batch 1).

    Attributes:
        prefill: reading a prompt of ``prompt`` tokens.
        decode: writing ``new`` tokens one by one with the cache.
        prompt, new, repeats: tokens in the prompt, tokens written, and timed runs after a warm-up.
    """

    prefill: Rate
    decode: Rate
    prompt: int
    new: int
    repeats: int


WINDOWS_AT_ONCE = 8


def perplexity(
    model: Callable[..., Any] | BlockRunner,
    windows: torch.Tensor,
    batch: int = WINDOWS_AT_ONCE,
    *,
    around: Around | None = None,
    ranks: Ranks = ALONE,
) -> Perplexity:
    """Perplexity of non-overlapping windows, each with a loss of its own (LLM-Pruner's evaluation, arXiv 2305.11627).

    Args:
        model: a causal language model, or what runs one, or any callable that takes ``input_ids`` ``[B, L]`` and
            returns logits ``[B, L, V]``, bare or as ``.logits``. A module runs in eval mode on its own device.
        windows: token ids ``[N, L]`` without special tokens or padding.
        batch: windows in one forward pass.
        around: a context for the code of each forward pass of a model.
        ranks: who shares the windows; all of them call this.

    Raises:
        RequestError: when there is no token to predict.
        FxpruneError: when a loss (with its window) or the perplexity is not finite.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise RequestError(
            f"windows of shape {list(windows.shape)} have no token to predict",
            "give at least one window of at least two tokens",
        )
    mine = ranks.share(windows, "windows")
    feeds = [partial(_window_losses, chunk=chunk) for chunk in torch.split(mine, batch)]
    if isinstance(model, torch.nn.Module):
        model = BlockRunner(model)
    found = (
        model.run(feeds, around)
        if isinstance(model, BlockRunner)
        else [feed(model) for feed in counted(feeds, "batches")]
    )
    losses = torch.cat(ranks.gather(torch.cat(found)))
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise FxpruneError(
            f"perplexity is not finite: the loss of window {bad[0]} is {losses[bad[0]].item()} ({len(bad)} of "
            f"{len(losses)} windows)",
            "look for NaN or infinity in the weights, or measure in float32",
        )
    count = windows.shape[0] * (windows.shape[1] - 1)
    nll = losses.sum().item() / count
    by_window = (losses / (windows.shape[1] - 1)).tolist()
    return Perplexity(_exp(nll), nll, count, windows.shape[0], tuple(by_window))


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean of independent values; None of fewer than two."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def parameter_count(model: torch.nn.Module) -> int:
    """Number of elements of all parameters; a tied parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def byte_count(model: torch.nn.Module) -> int:
    """Bytes of the tensors in a checkpoint: parameters and persistent buffers; a tied tensor counts once."""
    held = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def tokens_per_second(
    model: torch.nn.Module | BlockRunner | Step,
    vocabulary: int,
    *,
    prompt: int = 128,
    new: int = 32,
    repeats: int = 5,
    seed: int = 0,
) -> Speed:
    """Time prefill and cached greedy decoding of one sequence of random tokens.

    Args:
        model: a transformers causal language model, or what runs one, or a ``Step`` to time another runtime.
        vocabulary: random token ids are below this.
        prompt: tokens in the prompt.
        new: tokens decoded after it.
        repeats: timed runs, after one warm-up run.
        seed: random seed of the prompt.

    Raises:
        RequestError: when a count is below one.
    """
    if min(prompt, new, repeats, vocabulary) < 1:
        raise RequestError(
            f"nothing to time: prompt {prompt}, new {new}, repeats {repeats}, vocabulary {vocabulary}",
            "give at least 1 of each",
        )
    ids = torch.randint(vocabulary, (1, prompt), generator=torch.Generator().manual_seed(seed))
    if isinstance(model, torch.nn.Module):
        model = BlockRunner(model)
    runs = (
        model.again(partial(_timed, model, ids, new, repeats))
        if isinstance(model, BlockRunner)
        else ([_time_once(model, ids, new) for _ in range(repeats + 1)][1:])
    )
    prefill, decode = zip(*runs, strict=True)
    return Speed(_rate(prompt, prefill), _rate(new, decode), prompt, new, repeats)


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        raise FxpruneError(
            f"perplexity is not finite: the mean loss is {nll:.6g} nats per token",
            "check the weights: some may be far too large",
        ) from None


def _window_losses(model: Callable[..., Any], chunk: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of each window, ``[B]`` float64."""
    logits = logits_of(model, chunk)[:, :-1]
    # Half-precision logits become float32 before the softmax; float64 stays float64.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = chunk[:, 1:].to(logits.device)
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).cpu().double().sum(dim=1)  # not every device has float64


def _timed(runner: BlockRunner, ids: torch.Tensor, new: int, repeats: int) -> list[tuple[float, float]]:
    """Times of a transformers model, after one run that does not count."""
    with runner.session() as model:
        return [_time_once(partial(decoded, model), ids, new) for _ in range(repeats + 1)][1:]


def _time_once(step: Step, ids: torch.Tensor, new: int) -> tuple[float, float]:
    """Seconds of the prefill and of ``new`` decoding steps; reading the argmax synchronises with the device."""
    start = time.perf_counter()
    logits, cache = step(ids, None)
    token = logits[:, -1:].argmax(-1).cpu()
    read = time.perf_counter()
    for _ in range(new):
        logits, cache = step(token, cache)
        token = logits[:, -1:].argmax(-1).cpu()
    return read - start, time.perf_counter() - read


def _rate(tokens: int, seconds: tuple[float, ...]) -> Rate:
    return Rate(tokens / statistics.median(seconds), tokens / max(seconds), tokens / min(seconds))
