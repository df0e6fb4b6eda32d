"""Scores of sub-blocks: their influence on the residual stream, or the perplexity without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from ...ir import FxpruneError
from ...runtime.streaming.block_runner import BlockRunner
from ..model.forward import reading
from .greedy import Chosen, Gauge, one_after_the_other
from .sub_blocks import ADD, SubBlock, taken_out

SUMS = tuple(getattr(torch.ops.aten, name.removeprefix("aten.")).Tensor for name in ADD)


def choose(gauge: Gauge | None, runner: BlockRunner, parts: Sequence[SubBlock], tokens: Tensor, count: int) -> Chosen:
    """Indices of the ``count`` sub-blocks to remove, and scores.

    Args:
        gauge: of the model without some of them: greedily remove the one without which it reads best; the scores are
            what it read after each removal. When None, remove those with the smallest influence; the scores are the
            influences of all sub-blocks.
        runner: of the model.
        parts: the sub-blocks.
        tokens: int64 ``[N, L]``.
        count: number of sub-blocks to remove.

    Raises:
        FxpruneError: for a score that is not finite.
    """
    if gauge is None:
        scores = sub_block_influence(runner, parts, tokens)
        return sorted(range(len(parts)), key=lambda index: (scores[index], index))[:count], scores

    def cost(gone: Sequence[int]) -> float:
        without = [parts[index] for index in gone]
        return gauge.sign * gauge.read(runner, lambda _batch: taken_out(runner.model, without))

    gone, costs = one_after_the_other(len(parts), count, cost)
    return gone, [gauge.sign * found for found in costs]


def sub_block_influence(runner: BlockRunner, parts: Sequence[SubBlock], tokens: Tensor) -> list[float]:
    """One minus the mean cosine similarity of the residual stream with and without the output of each sub-block.

    This is the block influence (ShortGPT, arXiv 2403.03853, section 3.1) of one addition. When a layer adds several
    outputs one after the other, the residual stream after all of them is used.

    Args:
        runner: of the model.
        parts: sub-blocks of the model.
        tokens: int64 ``[N, L]``.

    Returns:
        One number per sub-block, from 0 (changes nothing) to 2.

    Raises:
        FxpruneError: for a number that is not finite, or when the addition of a sub-block did not run.
    """
    sums, module_of = _Sums(parts), runner.model.get_submodule
    layers = {part.path.rpartition(".")[0] for part in parts}
    handles = [module_of(part.path).register_forward_hook(sums.left(i)) for i, part in enumerate(parts)]
    handles += [module_of(path).register_forward_hook(sums.finish) for path in sorted(layers)]
    try:
        runner.run([reading(window) for window in tokens.split(1)], lambda _window: sums, restart=sums.forget)
    finally:
        for handle in handles:
            handle.remove()
    unseen = [part.path for part, count in zip(parts, sums.seen, strict=True) if count != tokens.numel()]
    if unseen:
        raise FxpruneError(f"the addition of {unseen[0]} to the residual stream did not run", "use by=perplexity")
    scores = [1 - total / tokens.numel() for total in sums.cosines]
    if not all(map(math.isfinite, scores)):
        raise FxpruneError(f"block influences are not finite: {scores}", "check the weights and the calibration text")
    return scores


class _Sums(TorchDispatchMode):
    """Follows the outputs of sub-blocks to the additions of their layers.

    Attributes:
        terms: id of a tensor -> the tensor, and for every sub-block in it: index, added term, number of additions left.
        cosines: cosine similarity of every sub-block, summed over tokens.
        seen: number of tokens in each sum.
    """

    def __init__(self, parts: Sequence[SubBlock]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = parts
        self.forget()

    def forget(self) -> None:
        """Begin again."""
        self.terms: dict[int, tuple[Tensor, list[tuple[int, Tensor | None, int]]]] = {}
        self.cosines = [0.0] * len(self.parts)
        self.seen = [0] * len(self.parts)

    def finish(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """A forward hook for layers: all additions are within the layer."""
        self.terms.clear()

    def left(self, index: int) -> Callable[..., None]:
        """A forward hook for the child whose output is added."""

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            term = output[0] if isinstance(output, tuple) else output
            self.terms[id(term)] = (term, [(index, None, self.parts[index].adds)])

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = []
        for operand in args:
            tensor, entries = self.terms.get(id(operand), (None, []))
            if tensor is not None and tensor is operand:
                # An addition in place would overwrite the term.
                held += [
                    (i, operand.clone() if term is None and func in SUMS else term, left) for i, term, left in entries
                ]
        result = func(*args, **(kwargs or {}))
        if func not in SUMS:  # the layer may reshape or scale a term, but not a finished sum
            held = [entry for entry in held if entry[1] is None]
        if not held or not isinstance(result, Tensor):
            return result
        done = func in SUMS
        self._add(result, [(i, term) for i, term, left in held if done and left == 1 and term is not None])
        later = [(i, term, left - done) for i, term, left in held if not (done and left == 1)]
        self.terms.pop(id(result), None)
        if later:
            self.terms[id(result)] = (result, later)
        return result

    def _add(self, stream: Tensor, terms: Sequence[tuple[int, Tensor]]) -> None:
        for index, term in terms:
            after = stream.double()
            cosine = cosine_similarity(after - term.double().view_as(after), after, dim=-1)
            self.cosines[index] += float(cosine.sum())
            self.seen[index] += cosine.numel()
