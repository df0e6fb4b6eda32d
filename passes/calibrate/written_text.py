"""Text that a model writes, put after the calibration text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import FxpruneError, RequestError
from ...runtime.model.embeddings import vocabulary
from ...runtime.reporting import counted
from ...runtime.streaming.block_runner import BlockRunner
from ..data import Corpus, is_inputs
from ..model.forward import decoded
from ..state import State
from .generate import Generate


def add_text(step: Generate, state: State) -> None:
    """Let the model write, as :meth:`~.generate.Generate.run` says."""
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
    sizes = [len(part) for part in torch.arange(step.windows).split(step.batch)]
    runner = state.subject.runner

    def write() -> Tensor:
        generator = torch.Generator().manual_seed(step.seed)
        parts = [written_by(runner, size, step.length, generator) for size in counted(sizes, "batches")]
        return torch.cat(parts)

    written = state.ranks.broadcast(runner.again(write))
    state.data.calibration = Joined(given, step.first, written)
    state.ledger.written.append((step.first, written))
    state.ledger.report[step.name] = {"windows": step.windows, "length": step.length}


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
        for _ in range(length - 1):
            found, state = decoded(model, tokens[-1], state)
            logits = found[:, -1].float().cpu()
            if not bool(logits.isfinite().all()):
                raise FxpruneError("generate: the model's logits are not finite", "run in float32; check the weights")
            tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    return torch.cat(tokens, 1)
