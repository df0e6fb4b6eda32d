"""What one batch shows of a model: how its weights are called, and which of its parts can have turns of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.blocks import BlockList
from ...runtime.streaming.side_effects import PassesOnMoreError
from ...runtime.tensors import tensors_by_name
from ..couple.consumers import Consumer
from .batches import Feed, LinearCall, without_data
from .linear_maps import BiasPlace, LinearMap, WeightAccess
from .recorded_calls import recorded_calls


@dataclass(frozen=True)
class Probe:
    """What a run of one batch has shown.

    Attributes:
        maps: weight -> the linear map that it is, or that one of its experts is; only for its form.
        stops: modules outside the blocks that call some of the weights and can have a turn.
        turns: how often each block, and each of the stops, had its turn.
    """

    maps: dict[str, LinearMap]
    stops: tuple[str, ...]
    turns: Counter[str]


def probed(runner: BlockRunner, feed: Feed, consumers: Sequence[Consumer]) -> Probe:
    """Run one batch.

    Lists of blocks that pass on more than their outputs are left whole by the runner from then on.

    Args:
        runner: of the model.
        feed: the batch.
        consumers: the weights whose calls are of interest.
    """
    refused: set[str] = set()
    names = [consumer.tensor for consumer in consumers]

    def attempt() -> Probe:
        while True:
            stops = _stops(runner.blocks, consumers, refused)
            try:
                return _probed(runner.stopping_at(stops), feed, names)
            except PassesOnMoreError as error:
                if error.path not in stops:
                    raise
                refused.add(error.path)

    return runner.again(attempt)


def _stops(blocks: BlockList, consumers: Iterable[Consumer], refused: Collection[str]) -> tuple[str, ...]:
    """The outermost modules outside the blocks, and around none, that call a weight which no other module calls."""
    alone = dict.fromkeys(consumer.modules[0] for consumer in consumers if len(consumer.modules) == 1)
    found = [
        path
        for path in alone
        if path
        and path not in refused
        and blocks.holder(path) is None
        and not any(block.startswith(f"{path}.") for block in blocks.modules)
    ]
    return tuple(path for path in found if not any(path.startswith(f"{outer}.") for outer in found))


def _probed(runner: BlockRunner, feed: Feed, names: Sequence[str]) -> Probe:
    calls: dict[str, LinearCall] = {}
    turns: Counter[str] = Counter()

    def receive(call: LinearCall) -> None:
        if call.bias is None or BiasPlace.of(call.bias) is not None:
            calls[call.tensor] = without_data(call)

    with (
        recorded_calls(runner, names, receive, shapes_only=True) as around,
        closing(runner.turns([feed], around)) as steps,
    ):
        for turn in steps:
            turns[turn.path] += 1
            with torch.no_grad():
                turn.outputs[0] = turn.checked(0)
    tensors, access = tensors_by_name(runner.model), WeightAccess(runner, brings=True)
    maps = {name: LinearMap.of(call, tensors[name], access) for name, call in calls.items()}
    # Of a graph that has taken the place of the module's own code, no module is called.
    return Probe(maps, tuple(path for path in runner.stops if turns[path]), turns)
