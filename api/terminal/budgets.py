"""What a budget came to, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.place.memory import size_text


def budgets(report: Mapping[str, Any]) -> list[str]:
    """For every pass with a budget that is no plain number of the result, a line: of time, of memory, of active
    parameters, and for one of several sizes, what it is a part of."""
    lines = []
    for name, entry in report.items():
        if isinstance(found := entry.get("seconds"), Mapping):
            lines += [f"{name}: {said}" for said in _latency(found)]
        allocation = entry.get("allocation", {})
        if allocation.get("measure") == "memory":
            lines.append(f"{name}: {_memory(allocation)}")
        if allocation.get("measure") == "active":
            reached, asked = allocation["reached"], allocation["budget"]
            lines.append(f"{name}: {reached:,} active parameters, where {asked:,} were asked for")
        if larger := entry.get("subset_of"):
            lines.append(f"{name}: keeps a part of the units of {larger}")
    return lines


def _memory(allocation: Mapping[str, Any]) -> str:
    reached, cache = allocation["reached"], allocation.get("cache")
    said = f"{size_text(reached)} of memory, where {size_text(allocation['budget'])} were asked for"
    if cache is None:
        return f"{said}: the weights alone"
    return f"{said}: {size_text(reached - cache)} of weights, {size_text(cache)} of key-value cache"


def _latency(found: Mapping[str, Any]) -> list[str]:
    """The target, the time of the dense model, the time of the result, and what is to be known of them."""
    now, then, predicted = (
        None if seconds is None else f"{seconds * 1000:.3g} ms"
        for seconds in (found["after"], found["before"], found["predicted"])
    )
    if not now:
        return [f"latency target {predicted}; the result was not timed"]
    plans = f", the best of {found['plans']} plans" if found.get("plans", 1) > 1 else ""
    asked, ratio = found["asked"], found["after"] / found["before"]
    measured = f"measured {now} of {then}, {ratio:.3f} of the time, where {asked:.3f} was asked for{plans}"
    return [f"latency predicted {predicted}; {measured}", *found.get("remarks", ())]
