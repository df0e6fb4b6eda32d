"""How much the predictions of a graph suffer when its weights are rounded to a smaller data type.

A rounded graph cannot have the same logits as the model. So it is measured how well it predicts text that was sampled
from the model. On such text, the perplexity of a graph q is the perplexity of the model p times ``exp(KL(p || q))``,
with the mean over positions. So the growth of perplexity is known exactly, and no other text is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...ir.errors import FxpruneError
from ...runtime.model.embeddings import vocabulary
from ...runtime.model.keywords import cache_argument, returned_cache
from .check import TorchReference, decode_pairs, greedy_shortfalls, padded_pairs
from .runtime import Floats, OnnxDecoder, TokenArray

# The largest allowed relative growth of perplexity. int8 costs almost nothing. The loss by int4 depends on the model,
# so it is reported; the limit only detects a broken graph, whose perplexity grows many times over.
GROWTH = {"float16": 0.002, "int8": 0.01, "int4": 0.25}

# The largest allowed loss, as a share of KL(p || mean of p), which is what the context adds to the prediction. In an
# untrained model the context adds little, so perplexity would hardly grow in a graph that ignores the context.
LOST = {"float16": 0.01, "int8": 0.05, "int4": 0.5}

_SEQUENCES, _TEXT_LENGTH = 4, 64
_TEXT_SEED = 0


@dataclass(frozen=True)
class RoundingLoss:
    """The loss by rounding.

    Attributes:
        growth: check -> relative growth of perplexity on text that the model wrote: ``text`` reads it at once,
            ``decode`` with a cache, ``padded`` in a left-padded batch.
        greedy_tokens: number of tokens that ``generate`` of torch produced.
        greedy_equal: number of these tokens that the graph chose too.
    """

    growth: dict[str, float]
    greedy_tokens: int
    greedy_equal: int


def check_rounded(
    decoder: OnnxDecoder, model: torch.nn.Module, dtype: str, progress: Callable[[str], None]
) -> RoundingLoss:
    """Compare a rounded graph with ``model`` (float32, CPU).

    Raises:
        FxpruneError: perplexity grows by more than :data:`GROWTH`, or the loss is more than :data:`LOST`.
    """
    reference = TorchReference(model, _written(model))
    checks = {"text": _text, "decode": decode_pairs, "padded": padded_pairs}
    growth: dict[str, float] = {}
    for name, pairs in checks.items():
        progress(f"checking {name} of the {dtype} graph in ONNX Runtime")
        growth[name], lost = _compare(list(pairs(decoder, reference)))
        # Written so that NaN is refused too.
        if not (growth[name] <= GROWTH[dtype] and lost <= LOST[dtype]):
            raise FxpruneError(
                f"the {dtype} graph predicts worse than the model in check {name!r}: perplexity grows by "
                f"{growth[name]:.2%} (at most {GROWTH[dtype]:.1%}), and {lost:.1%} of the information from the context "
                f"is lost (at most {LOST[dtype]:.0%})",
                "use --dtype float32, or the next larger type",
            )
    progress(f"checking greedy decoding of the {dtype} graph in ONNX Runtime")
    shortfalls = list(greedy_shortfalls(decoder, reference))
    return RoundingLoss(growth, len(shortfalls), sum(gap == 0.0 for gap in shortfalls))


def _text(decoder: OnnxDecoder, reference: TorchReference) -> Iterator[tuple[Floats, Floats]]:
    tokens = reference.tokens(_SEQUENCES, _TEXT_LENGTH)
    yield decoder.logits(tokens), reference.logits(tokens)


def _compare(pairs: list[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Growth of perplexity, ``exp(KL(p || q)) - 1``, and the share that is lost, ``KL(p || q) / KL(p || mean of p)``.

    Each pair has the logits of the graph (q) and of the model (p), ``[..., vocabulary]``. Means are over all positions.
    """
    log_q, log_p = (
        torch.cat([torch.from_numpy(logits).double().log_softmax(-1).flatten(0, -2) for logits in side])
        for side in zip(*pairs, strict=True)
    )
    p = log_p.exp()
    divergence = float((p * (log_p - log_q)).sum(-1).mean())
    learnt = float((p * (log_p - p.mean(0).log())).sum(-1).mean())
    return (math.expm1(divergence) if divergence < 700 else math.inf), divergence / max(learnt, 1e-12)


def _written(model: torch.nn.Module) -> TokenArray:
    """Text sampled from the model, ``[sequences, length]``, after random first tokens."""
    context = getattr(model.config, "max_position_embeddings", None) or _TEXT_LENGTH
    tokens = torch.from_numpy(np.random.default_rng(_TEXT_SEED).integers(0, vocabulary(model), (_SEQUENCES, 1)))
    generator = torch.Generator().manual_seed(_TEXT_SEED)
    cache: dict[str, Any] = {}
    with torch.no_grad():
        while tokens.shape[1] < min(_TEXT_LENGTH, int(context)):
            fed = tokens[:, -1:] if cache else tokens
            output = model(input_ids=fed, **cache, use_cache=True)
            returned = returned_cache(output)
            cache = {cache_argument(model, returned[0]): returned[1]} if returned else {}
            probabilities = output.logits[:, -1].double().softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    written: TokenArray = tokens.numpy()
    return written
