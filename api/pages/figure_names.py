"""What the figures in the JSON of eval and bench are called on a page, with their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "perplexity.value": "perplexity",
    "perplexity": "perplexity",
    "perplexity.nll": "log-perplexity, nats per token",
    "log_perplexity": "log-perplexity, nats per token",
    "perplexity.tokens": "tokens that are predicted",
    "tokens": "tokens that are predicted",
    "perplexity.windows": "windows of text",
    "windows": "windows of text",
    "parameters": "parameters",
    "bytes": "weights, bytes",
    "peak_memory": "peak memory, bytes",
    "ideal": "MACs of the baseline, divided by its own",
    "speed.prefill": "tokens read per second",
    "speed.decode": "tokens written per second",
    "speed.prompt": "tokens read when it was timed",
    "speed.new": "tokens written when it was timed",
    "speed.repeats": "times that it was timed",
    "timings.first_token": "seconds to the first token",
    "timings.tokens_per_second": "tokens written per second",
    "speedups": "times as fast as the baseline",
}
"""Path of a figure, without numbers of places in lists -> what it is called."""

SPREAD = ("median", "low", "high")
"""Keys of a value that was measured several times."""


def title_of(path: Sequence[str], data: Mapping[str, Any]) -> str:
    """What a figure is called.

    Args:
        path: its keys, from the outermost.
        data: the whole file, which may say for how many tokens multiply-accumulates are counted.
    """
    if tuple(path) == ("macs",):
        return f"multiply-accumulates{_call(data)}"
    for length in range(len(path), 0, -1):
        known = TITLES.get(".".join(path[:length]))
        if known is not None:
            return ", ".join([known, *map(_words, path[length:])])
    return ", ".join(map(_words, path))


def _call(data: Mapping[str, Any]) -> str:
    """For how many tokens: eval says its window, bench the prompt that it timed."""
    conditions = data.get("conditions")
    prompt = conditions.get("prompt") if isinstance(conditions, Mapping) else None
    for what, tokens in (("window", data.get("window")), ("prompt", prompt)):
        if isinstance(tokens, int):
            return f" of one {what} of {tokens} tokens"
    return ""


def _words(key: str) -> str:
    return key.replace("_", " ")
