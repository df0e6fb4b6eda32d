"""drop: remove whole layers, or the attention and MLP sub-blocks of layers, that matter least."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...ir import FxpruneError, RequestError
from ...ir.options import option, seed_option
from ...runtime.absence import absences
from ...runtime.streaming.block_runner import BlockRunner
from ..base import Pass, PassKind
from ..model.blocks import Blocks, find_blocks
from ..model.forward import reading
from ..state import State
from .greedy import ACCEPTANCE, Gauge, gauge_of, one_after_the_other
from .sub_block_scores import choose
from .sub_blocks import ATTENTION, MLP, absences_of, find_sub_blocks
from .taken_out import keep_layers, take_parts_out

CRITERIA = ("influence", "perplexity", ACCEPTANCE)
ANY = "any"


@dataclass(frozen=True, kw_only=True)
class Drop(Pass):
    """Remove whole layers, or attention and MLP sub-blocks of layers, that change the hidden states or the loss least.

    By block influence (ShortGPT, arXiv 2403.03853), or greedily by perplexity, or for a draft of the same model by the
    share of its tokens that the model accepts (speculative decoding, arXiv 2211.17192).
    """

    name: ClassVar[str] = "drop"
    kind: ClassVar[PassKind] = PassKind.SCORE
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    reads_text: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    layers: int | None = option(None, "number of layers to remove; 1 when sub_blocks is none too", at_least=0)
    sub_blocks: int | None = option(
        None, "number of attention or MLP sub-blocks to remove, after the layers", at_least=0
    )
    of: str = option(ANY, "which sub-blocks may be removed", (ANY, ATTENTION, MLP))
    by: str = option(
        "influence", "influence: one forward pass; perplexity: greedy, one removal at a time; acceptance: likewise, by "
        "the share of its tokens that the model as it was would accept from it as a draft", CRITERIA
    )  # fmt: skip
    samples: int = option(10, "calibration windows", at_least=1)
    length: int = option(
        128, "tokens in a calibration window", at_least=2, hint="a window of one token holds nothing to predict"
    )
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")

    def check(self) -> None:
        """Also refuse a choice among sub-blocks of which none go."""
        super().check()
        if self.of != ANY and not self.sub_blocks:
            raise RequestError(f"drop: of={self.of} has no effect without sub_blocks", "give sub_blocks=N too")

    def run(self, state: State) -> None:
        """Choose what to remove, remove it, trace the model again.

        Raises:
            RequestError: without calibration text, when nothing would be left, or for layers after sub-blocks.
            FxpruneError: for scores that are not finite, or when no configuration describes the new depth.
        """
        layers = (1 if self.sub_blocks is None else 0) if self.layers is None else self.layers
        model = state.subject.model
        count = len(find_blocks(model, state.subject.graph).modules)
        if layers >= count:
            raise RequestError(f"drop: {layers} of {count} layers leave none", f"drop at most {count - 1}")
        if layers and absences(model):
            raise RequestError(
                "drop: layers cannot be removed after sub-blocks", "write the pass that drops layers first"
            )
        tokens = state.data.text("drop needs").windows(self.length, self.samples, self.seed)
        tokens = tokens.to(state.subject.runner.device)
        gauge = gauge_of(self.by, state.subject.runner, tokens)
        if layers or not self.sub_blocks:
            self._drop_layers(state, tokens, layers, gauge)
        if self.sub_blocks:
            self._drop_sub_blocks(state, tokens, self.sub_blocks, gauge)

    def _drop_layers(self, state: State, tokens: torch.Tensor, layers: int, gauge: Gauge | None) -> None:
        blocks, ledger = find_blocks(state.subject.model, state.subject.graph), state.ledger
        runner = state.subject.runner
        chosen = _by_influence(runner, blocks, tokens, layers) if gauge is None else by_gauge(
            runner, blocks, layers, gauge)  # fmt: skip
        gone, scores = state.ranks.broadcast(chosen)
        kept = [index for index in range(len(blocks.modules)) if index not in gone]
        ledger.report[self.name] = {"by": self.by, "dropped": sorted(gone), "order": list(gone), "scores": scores}
        if not gone:
            return
        keep_layers(state, blocks, kept)
        ledger.report[self.name]["renamed"] = {now: old for now, old in ledger.renamed.items() if now != old}

    def _drop_sub_blocks(self, state: State, tokens: torch.Tensor, count: int, gauge: Gauge | None) -> None:
        model, runner = state.subject.model, state.subject.runner
        found = find_sub_blocks(runner, find_blocks(model, state.subject.graph), state.subject.graph, tokens)
        parts = [part for part in found if self.of in (ANY, part.kind)]
        if count >= len(found) or count > len(parts):
            which = "sub-blocks" if self.of == ANY else f"{self.of} sub-blocks"
            most = min(len(parts), len(found) - 1)
            raise RequestError(f"drop: cannot remove {count} of {len(parts)} {which}", f"drop at most {most}")
        gone, scores = state.ranks.broadcast(choose(gauge, runner, parts, tokens, count))
        scored = range(len(parts)) if self.by == "influence" else gone
        earlier = state.ledger.report.get(self.name, {})
        state.ledger.report[self.name] = {
            **earlier,
            "sub_blocks": [
                *earlier.get("sub_blocks", ()),
                *({"module": parts[i].path, "kind": parts[i].kind, "with": list(parts[i].members)} for i in gone),
            ],
            "sub_block_scores": {
                "by": self.by,
                "scores": {parts[i].path: score for i, score in zip(scored, scores, strict=True)},
            },
        }
        take_parts_out(state, absences_of(parts[index] for index in gone))


def _by_influence(
    runner: BlockRunner, blocks: Blocks, tokens: torch.Tensor, layers: int
) -> tuple[list[int], list[float]]:
    scores = block_influence(runner, blocks, tokens)
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    return order[:layers], scores


def block_influence(runner: BlockRunner, blocks: Blocks, tokens: torch.Tensor) -> list[float]:
    """One minus the mean cosine similarity between the input and the output of each block, over all tokens.

    Args:
        runner: of the model.
        blocks: the model's blocks.
        tokens: int64 ``[N, L]``.

    Raises:
        FxpruneError: when an influence is not finite.
    """
    cosines = [0.0] * len(blocks.modules)

    def forget() -> None:
        cosines[:] = [0.0] * len(cosines)

    def recording_hook(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(entered.double(), left.double(), dim=-1)
            cosines[index] += float(cosine.sum())

        return hook

    handles = [m.register_forward_hook(recording_hook(i), with_kwargs=True) for i, m in enumerate(blocks.modules)]
    try:
        runner.run([reading(window) for window in tokens.split(1)], restart=forget)
    finally:
        for handle in handles:
            handle.remove()
    scores = [1 - total / tokens.numel() for total in cosines]
    if not all(map(math.isfinite, scores)):
        raise FxpruneError(f"block influences are not finite: {scores}", "check the weights and the calibration text")
    return scores


def by_gauge(runner: BlockRunner, blocks: Blocks, layers: int, gauge: Gauge) -> tuple[list[int], list[float]]:
    """Remove one layer at a time: always the one whose removal costs least; returns what the gauge read after each."""

    def without(gone: Sequence[int]) -> float:
        """When some blocks return their input unchanged."""
        handles = [blocks.modules[i].register_forward_hook(_pass_on, with_kwargs=True) for i in gone]
        try:
            return gauge.sign * gauge.read(runner, None)
        finally:
            for handle in handles:
                handle.remove()

    gone, costs = one_after_the_other(len(blocks.modules), layers, without)
    return gone, [gauge.sign * cost for cost in costs]


def _pass_on(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    entered = args[0] if args else kwargs["hidden_states"]
    return (entered, *output[1:]) if isinstance(output, tuple) else entered
