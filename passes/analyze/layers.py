"""The distance of a model without one layer, or without one attention or MLP part of a layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...ir import RequestError
from ...runtime.reporting import counted
from ..data import is_inputs
from ..drop.choice import passed_over
from ..drop.sub_blocks import SubBlock, find_sub_blocks, taken_out
from ..model.blocks import Blocks, find_blocks
from ..select.sensitivity import DivergenceGauge
from ..state import State
from .analyze import Analyze

LAYER = "layer"


def measured_parts(step: Analyze, state: State, gauge: DivergenceGauge) -> list[dict[str, Any]]:
    """What each layer, and each of its parts that ``drop`` can take out, costs alone; none where ``drop`` cannot."""
    calibration = state.data.calibration
    if state.data.losses or calibration is None or is_inputs(calibration):
        return []
    model, runner = state.subject.model, state.subject.runner
    try:
        blocks = find_blocks(model, state.subject.graph)
    except RequestError:  # no layers
        return []
    found = [
        _entry(f"{blocks.path}.{index}", index, LAYER, _without(gauge, blocks, index), [blocks.modules[index]])
        for index in counted(range(len(blocks.modules)), "measured layers")
    ]
    tokens = calibration.windows(step.length, 1, getattr(step.step, "seed", None)).to(runner.device)
    for part in counted(_sub_blocks(state, blocks, tokens), "measured parts"):
        distance = _without_part(gauge, model, part)
        modules = [model.get_submodule(path) for path in part.members]
        found.append(_entry(part.path, part.layer, part.kind, distance, modules))
    return found


def _without_part(gauge: DivergenceGauge, model: nn.Module, part: SubBlock) -> float:
    return gauge.read(lambda _batch: taken_out(model, [part]))


def _sub_blocks(state: State, blocks: Blocks, tokens: Any) -> tuple[SubBlock, ...]:
    try:
        return find_sub_blocks(state.subject.runner, blocks, state.subject.graph, tokens)
    except RequestError:  # of layers that do more than add to the residual stream
        return ()


def _without(gauge: DivergenceGauge, blocks: Blocks, index: int) -> float:
    with passed_over(blocks, [index]):
        return gauge.read()


def _entry(path: str, layer: int, kind: str, distance: float, modules: Iterable[nn.Module]) -> dict[str, Any]:
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return {"name": path, "layer": layer, "kind": kind, "loss": round(distance, 9), "parameters": count}
