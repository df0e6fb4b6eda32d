"""What drop removes: layers and sub-blocks, chosen by block influence, or greedily by perplexity or acceptance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...ir import FxpruneError, RequestError
from ...runtime.absence import absences
from ...runtime.streaming.block_runner import BlockRunner
from ..model.blocks import Blocks, find_blocks
from ..model.forward import reading
from ..state import State
from .drop import ANY, Drop
from .greedy import Gauge, gauge_of, one_after_the_other
from .sub_block_scores import choose
from .sub_blocks import absences_of, find_sub_blocks
from .taken_out import keep_layers, take_parts_out


def drop(step: Drop, state: State) -> None:
    """Remove what the options of the pass say, as :meth:`~.drop.Drop.run` says."""
    layers = (1 if step.sub_blocks is None else 0) if step.layers is None else step.layers
    model = state.subject.model
    count = len(find_blocks(model, state.subject.graph).modules)
    if layers >= count:
        raise RequestError(f"drop: {layers} of {count} layers leave none", f"drop at most {count - 1}")
    if layers and absences(model):
        raise RequestError("drop: layers cannot be removed after sub-blocks", "write the pass that drops layers first")
    tokens = state.data.text("drop needs").windows(step.length, step.samples, step.seed)
    tokens = tokens.to(state.subject.runner.device)
    gauge = gauge_of(step.by, state.subject.runner, tokens)
    if layers or not step.sub_blocks:
        _drop_layers(step, state, tokens, layers, gauge)
    if step.sub_blocks:
        _drop_sub_blocks(step, state, tokens, step.sub_blocks, gauge)


def _drop_layers(step: Drop, state: State, tokens: torch.Tensor, layers: int, gauge: Gauge | None) -> None:
    blocks, ledger = find_blocks(state.subject.model, state.subject.graph), state.ledger
    runner = state.subject.runner
    chosen = _by_influence(runner, blocks, tokens, layers) if gauge is None else by_gauge(
        runner, blocks, layers, gauge)  # fmt: skip
    gone, scores = state.ranks.broadcast(chosen)
    kept = [index for index in range(len(blocks.modules)) if index not in gone]
    ledger.report[step.name] = {"by": step.by, "dropped": sorted(gone), "order": list(gone), "scores": scores}
    if not gone:
        return
    keep_layers(state, blocks, kept)
    ledger.report[step.name]["renamed"] = {now: old for now, old in ledger.renamed.items() if now != old}


def _drop_sub_blocks(step: Drop, state: State, tokens: torch.Tensor, count: int, gauge: Gauge | None) -> None:
    model, runner = state.subject.model, state.subject.runner
    found = find_sub_blocks(runner, find_blocks(model, state.subject.graph), state.subject.graph, tokens)
    parts = [part for part in found if step.of in (ANY, part.kind)]
    if count >= len(found) or count > len(parts):
        which = "sub-blocks" if step.of == ANY else f"{step.of} sub-blocks"
        most = min(len(parts), len(found) - 1)
        raise RequestError(f"drop: cannot remove {count} of {len(parts)} {which}", f"drop at most {most}")
    gone, scores = state.ranks.broadcast(choose(gauge, runner, parts, tokens, count))
    scored = range(len(parts)) if step.by == "influence" else gone
    earlier = state.ledger.report.get(step.name, {})
    state.ledger.report[step.name] = {
        **earlier,
        "sub_blocks": [
            *earlier.get("sub_blocks", ()),
            *({"module": parts[i].path, "kind": parts[i].kind, "with": list(parts[i].members)} for i in gone),
        ],
        "sub_block_scores": {
            "by": step.by,
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
        with passed_over(blocks, gone):
            return gauge.sign * gauge.read(runner, None)

    gone, costs = one_after_the_other(len(blocks.modules), layers, without)
    return gone, [gauge.sign * cost for cost in costs]


@contextmanager
def passed_over(blocks: Blocks, gone: Sequence[int]) -> Iterator[None]:
    """Inside, some blocks return their input unchanged."""
    handles = [blocks.modules[i].register_forward_hook(_pass_on, with_kwargs=True) for i in gone]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pass_on(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    entered = args[0] if args else kwargs["hidden_states"]
    return (entered, *output[1:]) if isinstance(output, tuple) else entered
