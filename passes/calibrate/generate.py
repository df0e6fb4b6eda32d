"""generate: the model writes its own calibration text, for users who have little text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...ir import FxpruneError, RequestError
from ...ir.options import option, seed_option
from ...runtime.model.embeddings import vocabulary
from ...runtime.streaming.block_runner import BlockRunner
from ..base import Pass, PassKind
from ..data import Corpus, is_inputs
from ..model.forward import decoded
from ..state import State


@dataclass(frozen=True, kw_only=True)
class Generate(Pass):
    """Add windows that the dense model writes to the calibration text, for all following passes.

    Tokens are sampled from the model's predictions; the first token of a window is uniform over the vocabulary
    (LLM-QAT, arXiv 2305.17888, section 3.1; for pruning Williams et al., arXiv 2410.17170). The text that a model
    writes resembles its training text, so that it can replace calibration text that the user lacks. Tokens are written
    one by one, so that a model whose weights are not in memory is read once for every token of a batch.
    """

    name: ClassVar[str] = "generate"
    kind: ClassVar[PassKind] = PassKind.ANALYSIS
    reads_text: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    windows: int = option(256, "number of windows that the model writes", at_least=1)
    length: int = option(128, "tokens in a window", at_least=2)
    first: int = option(10, "windows of the --calib text to put before them, if there is one", at_least=0)
    seed: int = seed_option(0, "random seed of the sampling")
    batch: int = option(64, "windows written in one batch", at_least=1)

    def run(self, state: State) -> None:
        """Write text, and add it to the calibration text of the state.

        Raises:
            RequestError: after a pruning pass, because the text must come from the dense model; for a module that is
                not a causal language model of transformers.
            FxpruneError: for logits that are not finite.
        """
        if state.ledger.plan is not None:
            raise RequestError(
                "generate: a pruning pass before it removed units already", "write it first: generate,fisher"
            )
        if not hasattr(state.subject.model, "get_input_embeddings") or state.data.losses:
            raise RequestError(
                f"generate needs a causal language model; this is a {type(state.subject.model).__name__}",
                "leave generate out and give calibration data",
            )
        if is_inputs(given := state.data.calibration):
            raise RequestError(
                f"generate adds windows to a text, and '{given.name}' holds inputs of another kind",
                "leave generate out, or give text",
            )
        sizes = [len(part) for part in torch.arange(self.windows).split(self.batch)]
        runner = state.subject.runner

        def write() -> Tensor:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.cat([written_by(runner, size, self.length, generator) for size in sizes])

        written = state.ranks.broadcast(runner.again(write))
        state.data.calibration = Joined(given, self.first, written)
        state.ledger.written.append((self.first, written))
        state.ledger.report[self.name] = {"windows": self.windows, "length": self.length}


@dataclass(frozen=True)
class Joined:
    """The user's text followed by generated text.

    Attributes:
        given: the user's text; None when there is none.
        first: number of its windows that come before the generated ones.
        written: the generated windows, int64 ``[N, L]``.
    """

    given: Corpus | None
    first: int
    written: Tensor

    @property
    def name(self) -> str:
        """The name of the user's text, with the words "generated text"."""
        return "generated text" if self.given is None else f"{self.given.name} and generated text"

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> Tensor:
        """As in :class:`~.data.Corpus`; without a seed, the user's windows come first.

        Raises:
            RequestError: for windows longer than the generated ones, or more than there are.
        """
        if length > self.written.shape[1]:
            raise RequestError(
                f"length {length} is longer than the generated windows of {self.written.shape[1]} tokens",
                f"write generate{{length={length}}}",
            )
        parts = [self.written[:, :length]]
        if self.given is not None and self.first:
            parts.insert(0, self.given.windows(length, self.first, seed))
        whole = torch.cat(parts)
        if count is not None and count > len(whole):
            raise RequestError(
                f"{count} windows are needed, and there are {len(whole)}: {len(whole) - len(self.written)} of "
                f"the calibration text and {len(self.written)} generated",
                f"write generate{{windows={count - len(whole) + len(self.written)}}}, or use fewer samples",
            )
        if seed is not None:
            whole = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))]
        return whole[:count]

    def tokens(self) -> Tensor:
        """As in :class:`~.data.Corpus`."""
        given = [] if self.given is None else [self.given.tokens()]
        return torch.cat([*given, self.written.flatten()])


def written_by(runner: BlockRunner, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Windows that a causal language model writes, sampled at temperature 1.

    Args:
        runner: of a transformers model with a key-value cache.
        count, length: number of windows, and tokens in each.
        generator: random generator on the CPU.

    Returns:
        int64 ``[count, length]``, on the CPU.

    Raises:
        FxpruneError: for logits that are not finite.
    """
    tokens = [torch.randint(vocabulary(runner.model), (count, 1), generator=generator)]
    state = None
    with runner.session() as model:
        while len(tokens) < length:
            found, state = decoded(model, tokens[-1], state)
            logits = found[:, -1].float().cpu()
            if not bool(logits.isfinite().all()):
                raise FxpruneError("generate: the model's logits are not finite", "run in float32; check the weights")
            tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    return torch.cat(tokens, 1)
