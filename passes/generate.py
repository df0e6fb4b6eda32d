"""generate: the model writes calibration text of its own, where the user has little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ir import FxpruneError, RequestError
from .base import Pass, PassKind
from .data import Corpus
from .measure import inference
from .options import option
from .state import State


@dataclass(frozen=True, kw_only=True)
class Generate(Pass):
    """Add windows that the dense model writes itself to the calibration text, for all passes that follow.

    Tokens are drawn from the model's own distribution, the first of a window uniformly from the vocabulary (LLM-QAT,
    arXiv 2305.17888, section 3.1; for pruning Williams et al., arXiv 2410.17170). What a model writes is what it was
    trained on, so that the statistics of a few thousand tokens need no more text than the user gives.
    """

    name: ClassVar[str] = "generate"
    kind: ClassVar[PassKind] = PassKind.ANALYSIS

    windows: int = option(256, "how many windows the model writes")
    length: int = option(128, "tokens in a window")
    first: int = option(10, "windows of the calibration text that come before them, where there is one")
    seed: int = option(0, "seed of the draws")
    batch: int = option(64, "windows that are written at once")

    def check(self) -> None:
        """Refuse counts that write nothing."""
        for name, low in (("windows", 1), ("length", 2), ("first", 0), ("batch", 1)):
            if getattr(self, name) < low:
                raise RequestError(f"generate: {name} {getattr(self, name)} is below {low}", f"use {low} or more")

    def run(self, state: State) -> None:
        """Write, and put the corpus of both in the place of the calibration text.

        Raises:
            RequestError: after a pruning pass, since the pruned model's text is not the dense one's; for a module that
                is no causal language model of transformers.
            FxpruneError: for logits that are not finite.
        """
        if state.ledger.plan is not None:
            raise RequestError(
                "generate after a pruning pass would write the pruned model's text", "write it first: generate,fisher"
            )
        if not hasattr(state.subject.model, "get_input_embeddings") or state.data.losses:
            raise RequestError(
                f"generate needs a causal language model, and this is a {type(state.subject.model).__name__}",
                "give calibration data instead",
            )
        generator = torch.Generator().manual_seed(self.seed)
        sizes = [len(part) for part in torch.arange(self.windows).split(self.batch)]
        written = torch.cat([written_by(state.subject.model, size, self.length, generator) for size in sizes])
        state.data.calibration = Joined(state.data.calibration, self.first, written)
        state.ledger.written.append((self.first, written))
        state.ledger.report[self.name] = {"windows": self.windows, "length": self.length}


@dataclass(frozen=True)
class Joined:
    """Text of the user's, then text that a model wrote.

    Attributes:
        given: the user's, None when there is none.
        first: how many of its windows come before the others.
        written: ``[N, L]`` int64.
    """

    given: Corpus | None
    first: int
    written: Tensor

    @property
    def name(self) -> str:
        """The user's name for their part, and that there is another one."""
        return "generated text" if self.given is None else f"{self.given.name} and generated text"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> Tensor:
        """As :class:`~.data.Corpus` says; in order, the user's windows come first.

        Raises:
            RequestError: for windows longer than those written, or more than there are.
        """
        if length > self.written.shape[1]:
            raise RequestError(
                f"windows of {length} tokens, and the generated ones have {self.written.shape[1]}",
                f"write generate{{length={length}}}",
            )
        parts = [self.written[:, :length]]
        if self.given is not None and self.first:
            parts.insert(0, self.given.windows(length, self.first, seed))
        whole = torch.cat(parts)
        if count is not None and count > len(whole):
            raise RequestError(
                f"{count} windows asked for, and there are {len(whole)}: {len(whole) - len(self.written)} of "
                f"the calibration text and {len(self.written)} generated",
                f"write generate{{windows={count - len(whole) + len(self.written)}}}, or ask for fewer samples",
            )
        if seed is not None:
            whole = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))]
        return whole[:count]


def written_by(model: nn.Module, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Windows that a causal language model writes, at temperature 1.

    Args:
        model: of transformers, with a cache.
        count, length: of the windows.
        generator: on the CPU.

    Returns:
        int64 ``[count, length]``, on the CPU.

    Raises:
        FxpruneError: for logits that are not finite.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    device, vocabulary = embeddings.weight.device, embeddings.weight.shape[0]
    tokens = [torch.randint(vocabulary, (count, 1), generator=generator)]
    cache = None
    with inference(model):
        while len(tokens) < length:
            out = model(input_ids=tokens[-1].to(device), past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1].float().cpu()
            if not bool(logits.isfinite().all()):
                raise FxpruneError("the model's logits are not finite", "run in float32; check the weights")
            tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    return torch.cat(tokens, 1)
