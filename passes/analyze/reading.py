"""What an analysis says, read from its JSON: losses between measured counts, and layers that a budget spares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

LEFT_WHOLE = 0.95
"""Share of the units of all its groups that a spared layer keeps at least."""


def spared_layers(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    """The layers of which every group keeps nearly all of its units.

    Args:
        groups: as the pass ``analyze`` reports them.
    """
    found: dict[int, float] = {}
    for group in groups:
        if (layer := group["layer"]) is not None:
            found[layer] = min(found.get(layer, 1.0), group["kept"] / group["units"])
    return sorted(layer for layer, share in found.items() if share >= LEFT_WHOLE)


def loss_at(group: Mapping[str, Any], removed: float) -> float | None:
    """The loss when a share of a group's units goes, linear between what was measured; None beyond that.

    Args:
        group: as above.
        removed: the share, from 0 to 1.
    """
    counts, losses = group["counts"], group["losses"]
    wanted = group["units"] * (1 - removed)
    for (low, high), (cost, less) in zip(pairwise(counts), pairwise(losses), strict=True):
        if low <= wanted <= high:
            return float(cost + (less - cost) * (wanted - low) / (high - low))
    return None


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names without the modules that all of them begin with."""
    split = [name.split(":")[0].split(".") for name in names]
    same = 0
    while split and all(len(parts) > same + 1 and parts[same] == split[0][same] for parts in split):
        same += 1
    return {name: ".".join(name.split(".")[same:]) for name in names}
