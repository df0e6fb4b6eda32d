"""drop: whole layers go, those that change the hidden states least or whose loss costs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..ir import FxpruneError, Plan, RequestError
from .base import Pass, State, option
from .blocks import Blocks, find_blocks, keep_blocks
from .measure import inference, perplexity

CRITERIA = ("influence", "perplexity")


@dataclass(frozen=True, kw_only=True)
class Drop(Pass):
    """Remove whole layers, by block influence (ShortGPT, arXiv 2403.03853) or greedily by perplexity."""

    name: ClassVar[str] = "drop"
    kind: ClassVar[str] = "score"
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)

    layers: int = option(1, "how many layers go")
    by: str = option("influence", "influence: one forward; perplexity: greedy, by what each removal costs", CRITERIA)
    samples: int = option(10, "calibration windows")
    length: int = option(128, "tokens in a calibration window")
    seed: int | None = option(None, "draw the windows at random; the first ones in order when none")

    def check(self) -> None:
        """Refuse counts that make no sense."""
        if self.layers < 0:
            raise RequestError(f"drop: layers {self.layers} is negative", "say how many layers go, 0 or more")
        if self.samples < 1 or self.length < 2:
            raise RequestError(
                f"drop: {self.samples} windows of {self.length} tokens hold nothing to predict",
                "use at least one window of at least 2 tokens",
            )

    def run(self, state: State) -> None:
        """Choose, take out, retrace.

        Raises:
            RequestError: without calibration text, or when no layer would be left.
            FxpruneError: for scores that are not finite, or a configuration that cannot say the new depth.
        """
        model, blocks = state.model, find_blocks(state.model)
        count = len(blocks.modules)
        if self.layers >= count:
            raise RequestError(f"drop: {self.layers} of {count} layers leave none", f"drop at most {count - 1}")
        if state.calibration is None:
            raise RequestError("drop needs calibration text", "give --calib FILE")
        tokens = state.calibration.windows(self.length, self.samples, self.seed)
        choose: Callable[[nn.Module, Blocks, torch.Tensor, int], tuple[list[int], list[float]]] = {
            "influence": _by_influence, "perplexity": _by_perplexity,
        }[self.by]  # fmt: skip
        gone, scores = choose(model, blocks, tokens, self.layers)
        kept = [index for index in range(count) if index not in gone]
        state.report[self.name] = {"by": self.by, "dropped": sorted(gone), "scores": scores}
        if not gone:
            return
        names = keep_blocks(model, blocks, kept)
        state.renamed = {now: state.renamed.get(before, before) for now, before in names.items()}
        state.report[self.name]["renamed"] = {now: old for now, old in state.renamed.items() if now != old}
        state.plan = _renamed(state.plan, names)
        state.original, state.consumers = None, []
        assert state.retrace is not None, "whoever runs a pipeline gives the state a way to trace"
        state.graph = state.retrace(model)


def _renamed(plan: Plan | None, names: dict[str, str]) -> Plan | None:
    """What a plan says of the tensors that are left, under their new names."""
    if plan is None:
        return None
    slices = {
        (now, dim): kept for now, before in names.items() for (n, dim), kept in plan.slices.items() if n == before
    }
    return Plan(plan.keep, slices)


def _by_influence(model: nn.Module, blocks: Blocks, tokens: torch.Tensor, layers: int) -> tuple[list[int], list[float]]:
    scores = block_influence(model, blocks, tokens)
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    return order[:layers], scores


def block_influence(model: nn.Module, blocks: Blocks, tokens: torch.Tensor) -> list[float]:
    """One minus the mean cosine between what enters and what leaves each block, over all tokens.

    Args:
        model: in eval mode.
        blocks: of the model.
        tokens: int64 ``[N, L]``.

    Raises:
        FxpruneError: for one that is not finite.
    """
    cosines = [0.0] * len(blocks.modules)

    def watch(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(entered.double(), left.double(), dim=-1)
            cosines[index] += float(cosine.sum())

        return hook

    handles = [m.register_forward_hook(watch(i), with_kwargs=True) for i, m in enumerate(blocks.modules)]
    try:
        with inference(model):
            for window in tokens.split(1):
                model(input_ids=window, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    scores = [1 - total / tokens.numel() for total in cosines]
    if not all(map(math.isfinite, scores)):
        raise FxpruneError(f"block influences are not finite: {scores}", "check the weights and the calibration text")
    return scores


def _by_perplexity(
    model: nn.Module, blocks: Blocks, tokens: torch.Tensor, layers: int
) -> tuple[list[int], list[float]]:
    """One after the other, each time the layer without which the calibration text is modelled best."""
    gone: list[int] = []
    costs: list[float] = []
    for _ in range(layers):
        left = [index for index in range(len(blocks.modules)) if index not in gone]
        values = {index: _without(model, blocks, [*gone, index], tokens) for index in left}
        best = min(values, key=lambda index: (values[index], index))
        gone.append(best)
        costs.append(values[best])
    return gone, costs


def _without(model: nn.Module, blocks: Blocks, gone: Sequence[int], tokens: torch.Tensor) -> float:
    """Perplexity while some blocks pass on what they get."""
    handles = [blocks.modules[i].register_forward_hook(_pass_on, with_kwargs=True) for i in gone]
    try:
        return perplexity(model, tokens).value
    finally:
        for handle in handles:
            handle.remove()


def _pass_on(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    entered = args[0] if args else kwargs["hidden_states"]
    return (entered, *output[1:]) if isinstance(output, tuple) else entered
