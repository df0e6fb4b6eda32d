"""How much prediction is lost when a graph's weights are rounded to a smaller type.

A rounded graph cannot have the logits of the model, so it is asked how well it predicts what the model says. Over text
drawn from the model p itself, the perplexity of a graph q is that of p times ``exp(KL(p || q))``, the mean taken over
positions: the growth of perplexity, known exactly at every position, without any text from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..ir.errors import FxpruneError
from .onnx_check import Reference, decode_pairs, greedy_shortfalls, padded_pairs
from .onnx_runtime import Floats, OnnxDecoder, Tokens

# By how much perplexity may grow. For int8 it is what "nearly free" means; for int4 it tells a model that rounding to
# sixteen levels has damaged from a broken graph, whose perplexity grows many times over: what is lost depends on the
# model, so it is reported.
GROWTH = {"float16": 0.002, "int8": 0.01, "int4": 0.25}

# And how much may be lost of what the model learns from the context, KL(p || mean of p): where it learns little, as
# models before training do, a graph that ignores the context would not make perplexity grow by more than that.
LOST = {"float16": 0.01, "int8": 0.05, "int4": 0.5}

_SEQUENCES, _LENGTH = 4, 64
_SEED = 0


@dataclass(frozen=True)
class Loss:
    """What rounding cost.

    Attributes:
        growth: of perplexity on text that the model wrote, relative, by check: ``text`` reads it at once, ``decode``
            with a cache, ``padded`` in a left-padded batch.
        greedy_tokens: tokens that torch's ``generate`` produced.
        greedy_equal: how many of them the graph chooses too.
    """

    growth: dict[str, float]
    greedy_tokens: int
    greedy_equal: int


def check_rounded(decoder: OnnxDecoder, model: torch.nn.Module, dtype: str, progress: Callable[[str], None]) -> Loss:
    """Compare a rounded graph with ``model`` (float32, CPU).

    Raises:
        FxpruneError: perplexity grows by more than :data:`GROWTH` allows, or more than :data:`LOST` is lost.
    """
    reference = Reference(model, _written(model))
    checks = {"text": _text, "decode": decode_pairs, "padded": padded_pairs}
    growth: dict[str, float] = {}
    for name, pairs in checks.items():
        progress(f"checking {name} of the {dtype} graph in ONNX Runtime")
        growth[name], lost = _compare(list(pairs(decoder, reference)))
        # Written so that what is no number is refused too.
        if not (growth[name] <= GROWTH[dtype] and lost <= LOST[dtype]):
            raise FxpruneError(
                f"the {dtype} graph predicts worse than the model: perplexity grows by {growth[name]:.2%} ({name}, at "
                f"most {GROWTH[dtype]:.1%}), {lost:.1%} of what the context tells is lost (at most {LOST[dtype]:.0%})",
                "export with --dtype float32, or the next larger type",
            )
    shortfalls = list(greedy_shortfalls(decoder, reference))
    return Loss(growth, len(shortfalls), sum(gap == 0.0 for gap in shortfalls))


def _text(decoder: OnnxDecoder, reference: Reference) -> Iterator[tuple[Floats, Floats]]:
    tokens = reference.tokens(_SEQUENCES, _LENGTH)
    yield decoder.logits(tokens), reference.logits(tokens)


def _compare(pairs: list[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Growth of perplexity, ``exp(KL(p || q)) - 1``, and the share ``KL(p || q) / KL(p || mean of p)`` that is lost.

    Means over all positions of all pairs of logits, ours q and theirs p, each ``[..., vocabulary]``.
    """
    log_q, log_p = (
        torch.cat([torch.from_numpy(logits).double().log_softmax(-1).flatten(0, -2) for logits in side])
        for side in zip(*pairs, strict=True)
    )
    p = log_p.exp()
    divergence = float((p * (log_p - log_q)).sum(-1).mean())
    learnt = float((p * (log_p - p.mean(0).log())).sum(-1).mean())
    return (math.expm1(divergence) if divergence < 700 else math.inf), divergence / max(learnt, 1e-12)


def _written(model: torch.nn.Module) -> Tokens:
    """Text drawn from the model, ``[sequences, length]``: random first tokens, each next one from its distribution."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    context = getattr(model.config, "max_position_embeddings", None) or _LENGTH
    tokens = torch.from_numpy(np.random.default_rng(_SEED).integers(0, vocabulary, (_SEQUENCES, 1)))
    generator = torch.Generator().manual_seed(_SEED)
    cache = None
    with torch.no_grad():
        while tokens.shape[1] < min(_LENGTH, int(context)):
            fed = tokens if cache is None else tokens[:, -1:]
            output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities = output.logits[:, -1].double().softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    written: Tokens = tokens.numpy()
    return written
