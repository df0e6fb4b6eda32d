"""Compare an exported graph with the torch model: prefill, decoding, padding, greedy generation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from ...ir.errors import FxpruneError
from ...runtime.model.embeddings import vocabulary
from ...runtime.model.keywords import caching
from ...runtime.reporting import counted
from ...runtime.tolerances import ONNX_LOGITS_TOLERANCE
from .runtime import Floats, OnnxDecoder, TokenArray, token_positions

GREEDY_TOKENS = 32
_PROMPT_LENGTH = 8
_CHECK_SEED = 0
# These extents all differ from those of the traced example.
_CHECK_BATCH, _CHECK_LENGTH = 3, 7
_PADDED_LENGTHS = (9, 4, 6)
_CHUNK = 4

# The most likely cause when a check is the first that fails. The checks run in this order.
_CAUSES = {
    "prefill": "an operator is translated or fused wrongly",
    "decode": "the key-value cache or the positions after it are wrong",
    "padded": "the attention mask or the positions of padded sequences are ignored",
    "greedy": "errors accumulate in the cache over many steps",
}


@dataclass(frozen=True)
class Agreement:
    """How well the outputs of the two runtimes agree.

    Attributes:
        differences: check -> largest absolute difference of a logit. For ``greedy``: in ONNX Runtime, the logit of the
            best token minus that of the token that torch chose, 0 if both chose the same.
        greedy_tokens: number of tokens that ``generate`` of torch produced.
        greedy_equal: number of these tokens that ONNX Runtime chose too. Others differ by less than the tolerance.
    """

    differences: dict[str, float]
    greedy_tokens: int
    greedy_equal: int


def check_onnx(
    decoder: OnnxDecoder, model: torch.nn.Module, optimize: str, progress: Callable[[str], None]
) -> Agreement:
    """Compare the graph with ``model`` (float32, CPU) at shapes that the export has not seen.

    Raises:
        FxpruneError: a difference above :data:`ONNX_LOGITS_TOLERANCE`, with its size and likely cause.
    """
    reference = TorchReference(model)
    checks = {"prefill": _prefill, "decode": decode_pairs, "padded": padded_pairs}
    differences: dict[str, float] = {}
    for name, check in checks.items():
        progress(f"checking {name} in ONNX Runtime")
        differences[name] = max(_distance(ours, theirs) for ours, theirs in check(decoder, reference))
        _require(name, differences[name], optimize)
    progress("checking greedy decoding in ONNX Runtime")
    shortfalls = list(greedy_shortfalls(decoder, reference))
    differences["greedy"] = max(shortfalls)
    _require("greedy", differences["greedy"], optimize)
    return Agreement(differences, len(shortfalls), sum(gap == 0.0 for gap in shortfalls))


class TorchReference:
    """The torch model, called as the graph is: with explicit mask and positions, and the whole text at once.

    Args:
        model: the model in float32 on the CPU.
        text: tokens ``[sequences, length]`` that :meth:`tokens` returns; random tokens when None.
    """

    def __init__(self, model: torch.nn.Module, text: TokenArray | None = None) -> None:
        self.model: Any = model
        self.vocabulary = vocabulary(model)
        self._text = text
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def tokens(self, batch: int, length: int) -> TokenArray:
        if self._text is not None:
            return self._text[:batch, :length]
        return np.random.default_rng(_CHECK_SEED + length).integers(0, self.vocabulary, (batch, length))

    def logits(self, input_ids: TokenArray, mask: TokenArray | None = None) -> Floats:
        mask = np.ones_like(input_ids) if mask is None else mask
        inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
        if self._takes_positions:
            inputs["position_ids"] = torch.from_numpy(token_positions(mask))
        with torch.no_grad():
            logits: Floats = self.model(**inputs, **caching(self.model, False)).logits.numpy()
        return logits

    def generate(self, prompt: TokenArray, count: int) -> list[int]:
        """Generate greedily, without the model's own generation config, which may sample, penalise or stop early."""
        kept = self.model.generation_config
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        try:
            ids = torch.from_numpy(prompt)
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=True
            )
        finally:
            self.model.generation_config = kept
        new: list[int] = out[0, prompt.shape[1] :].tolist()
        return new

    def room(self, prompt: int) -> int:
        """Number of tokens to generate after the prompt, limited by the context of the model."""
        context = getattr(self.model.config, "max_position_embeddings", None) or prompt + GREEDY_TOKENS
        return min(GREEDY_TOKENS, int(context) - prompt)


def _prefill(decoder: OnnxDecoder, reference: TorchReference) -> Iterator[tuple[Floats, Floats]]:
    for batch, length in ((_CHECK_BATCH, _CHECK_LENGTH), (1, _CHECK_LENGTH + 1), (1, 1)):
        tokens = reference.tokens(batch, length)
        yield decoder.logits(tokens), reference.logits(tokens)


def decode_pairs(decoder: OnnxDecoder, reference: TorchReference) -> Iterator[tuple[Floats, Floats]]:
    """Logits of both: a prefill, then single tokens, then several tokens at once."""
    for batch in (_CHECK_BATCH, 1):
        tokens = reference.tokens(batch, _CHECK_LENGTH + 2 + _CHUNK)
        expected = reference.logits(tokens)
        cache, start = decoder.empty_cache(batch), 0
        for width in (_CHECK_LENGTH, 1, 1, _CHUNK):
            logits, cache = decoder.step(tokens[:, start : start + width], cache)
            yield logits, expected[:, start : start + width]
            start += width


def padded_pairs(decoder: OnnxDecoder, reference: TorchReference) -> Iterator[tuple[Floats, Floats]]:
    """Logits of both for a left-padded batch: a prefill, then two decoding steps; padding tokens are left out."""
    length = max(_PADDED_LENGTHS)
    tokens = reference.tokens(len(_PADDED_LENGTHS), length + 2)
    mask = np.array([[0] * (length - real) + [1] * (real + 2) for real in _PADDED_LENGTHS], np.int64)
    expected = reference.logits(tokens, mask)
    cache, start = decoder.empty_cache(len(tokens)), 0
    for end in (length, length + 1, length + 2):
        logits, cache = decoder.step(tokens[:, start:end], cache, attention_mask=mask[:, :end])
        real = mask[:, start:end] == 1
        yield logits[real], expected[:, start:end][real]
        start = end


def greedy_shortfalls(decoder: OnnxDecoder, reference: TorchReference) -> Iterator[float]:
    """For each token that torch generates greedily: the best logit in ONNX Runtime minus the logit of that token.

    ONNX Runtime always continues with the tokens of torch, so that after a tie the later steps still agree.
    """
    prompt = reference.tokens(1, _PROMPT_LENGTH)
    cache, tokens = decoder.empty_cache(1), prompt
    for chosen in counted(reference.generate(prompt, reference.room(_PROMPT_LENGTH)), "tokens"):
        logits, cache = decoder.step(tokens, cache)
        last = logits[0, -1]
        yield float(last.max() - last[chosen])
        tokens = np.array([[chosen]], np.int64)


def _distance(ours: Floats, theirs: Floats) -> float:
    difference = np.abs(ours - theirs).max()
    return float("inf") if np.isnan(difference) else float(difference)


def _require(name: str, difference: float, optimize: str) -> None:
    if difference <= ONNX_LOGITS_TOLERANCE:
        return
    hint = f"likely cause: {_CAUSES[name]}"
    if optimize != "none":
        hint += "; try `--optimize none`, which uses no fused operators"
    raise FxpruneError(
        f"the ONNX graph and the model differ: logits in check {name!r} by {difference:.3g}, more than "
        f"{ONNX_LOGITS_TOLERANCE:g}",
        hint,
    )
