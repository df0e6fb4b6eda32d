"""What a benchmark measures, and how models compare."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ONE_ROUND = "one round has no spread, and cannot say whether a difference is more than chance; --rounds 2 or more can"


@dataclass(frozen=True)
class RoundSpread:
    """A measured value over all rounds: median, lowest and highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """The times at one batch size.

    Attributes:
        batch: number of sequences.
        first_token: seconds from the prompt to the first new token.
        tokens_per_second: decoding speed with a key-value cache, summed over all sequences.
    """

    batch: int
    first_token: RoundSpread
    tokens_per_second: RoundSpread


@dataclass(frozen=True)
class Benchmark:
    """One model in one runtime.

    Attributes:
        name: the model as the user gave it.
        runtime: ``torch`` or ``onnxruntime``.
        parameters: number of parameters; a tied one is counted once.
        bytes: size of the weight files.
        macs: multiply-accumulates for one prompt.
        peak_memory: peak memory in bytes, without the interpreter and its libraries; on an accelerator, its memory;
            None if the system cannot tell.
        timings: one entry per batch size.
        ideal: multiply-accumulates of the baseline in the same runtime, divided by this model's.
        speedups: time of the baseline divided by this model's, by measured value and batch size; over the ratios
            of the same round.
        notes: batch sizes at which the model is slower, or the difference is within the spread; or that one round has
            none.
        placement: where it ran; None for ONNX Runtime, which runs on the CPU.
    """

    name: str
    runtime: str
    parameters: int
    bytes: int
    macs: int
    peak_memory: int | None
    timings: tuple[Timing, ...]
    ideal: float
    speedups: dict[str, RoundSpread]
    notes: tuple[str, ...]
    placement: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Conditions:
    """The settings that all models were timed with.

    Attributes:
        prompt, new: tokens in the prompt, and tokens generated.
        rounds: timed rounds, after a warm-up round.
        threads: threads within one operator, in torch and in ONNX Runtime.
        batches: the batch sizes.
    """

    prompt: int
    new: int
    rounds: int
    threads: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """The compared models.

    Attributes:
        conditions: how they were timed.
        models: in the order in which they were given.
        baselines: runtime -> name of the model that the others are compared with.
    """

    conditions: Conditions
    models: tuple[Benchmark, ...]
    baselines: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "conditions": dataclasses.asdict(self.conditions),
            "models": [row.to_json() for row in self.models],
            "baselines": dict(self.baselines),
        }


def baselines_of(names: Sequence[str], figures: Sequence[dict[str, Any]], baseline: str | None) -> dict[str, int]:
    """Runtime -> number of the model that its others are compared with."""
    found: dict[str, int] = {}
    for number, own in enumerate(figures):
        known = found.setdefault(own["runtime"], number)
        if names[known] == baseline:
            continue
        if names[number] == baseline or own["parameters"] > figures[known]["parameters"]:
            found[own["runtime"]] = number
    return found


def compared(
    names: Sequence[str],
    figures: Sequence[dict[str, Any]],
    times: Sequence[Sequence[dict[str, list[float]]]],
    conditions: Conditions,
    baselines: Mapping[str, int],
) -> Iterator[Benchmark]:
    """A row for every model, from its sizes and the times of its rounds.

    Args:
        names: of the models.
        figures: size, MACs and peak memory of each.
        times: of each, round by round: batch size -> seconds to the first token, and for all others.
        conditions: how they were timed.
        baselines: from :func:`baselines_of`.
    """
    for number, name in enumerate(names):
        own = figures[number]
        first = baselines[own["runtime"]]
        speedups = {} if first == number else _speedups(times[first], times[number])
        yield Benchmark(
            name=name,
            runtime=own["runtime"],
            parameters=own["parameters"],
            bytes=own["bytes"],
            macs=own["macs"],
            peak_memory=own["peak"],
            timings=tuple(_timing(batch, times[number], conditions.new) for batch in conditions.batches),
            ideal=figures[first]["macs"] / own["macs"],
            speedups=speedups,
            notes=_remarks(speedups, conditions.rounds),
            placement=own["placement"],
        )


def _timing(batch: int, rounds: Sequence[dict[str, list[float]]], new: int) -> Timing:
    first, decode = zip(*(found[str(batch)] for found in rounds), strict=True)
    return Timing(batch, spread_of(first), spread_of([batch * new / seconds for seconds in decode]))


def _speedups(
    before: Sequence[dict[str, list[float]]], after: Sequence[dict[str, list[float]]]
) -> dict[str, RoundSpread]:
    """``<measured value>, batch <size>`` -> ratio of the times of the two models in the same round."""
    found = {}
    for batch in before[0]:
        for index, figure in enumerate(("first token", "decode")):
            ratios = [old[batch][index] / own[batch][index] for old, own in zip(before, after, strict=True)]
            found[f"{figure}, batch {batch}"] = spread_of(ratios)
    return found


def _remarks(speedups: Mapping[str, RoundSpread], rounds: int) -> tuple[str, ...]:
    if speedups and rounds == 1:
        return (ONE_ROUND,)
    return tuple(note for what, ratio in speedups.items() for note in _notes(what, ratio))


def _notes(name: str, ratio: RoundSpread) -> Iterator[str]:
    if round(ratio.high, 2) < 1:
        yield f"{name}: slower, {ratio.median:.2f} times the speed"
    elif round(ratio.low, 2) <= 1:
        yield f"{name}: no clear difference, {ratio.low:.2f} to {ratio.high:.2f} times the speed"


def spread_of(values: Sequence[float]) -> RoundSpread:
    """The median, lowest and highest of the values of all rounds."""
    return RoundSpread(statistics.median(values), min(values), max(values))
