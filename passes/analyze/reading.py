"""What an analysis says, read from its JSON: losses between measured counts, and layers that a budget spares."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

LEFT_WHOLE = 0.95
"""Share of the units of all its groups that a spared layer keeps at least."""


COSTLY = 2.0
"""A layer is one to spare when a cut of it costs more than so many times what the same cut of the median one costs."""

HALF_THE_UNITS = 0.5
"""The share of the units that such a cut takes."""


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


def layer_losses(groups: Iterable[Mapping[str, Any]], removed: float) -> dict[int, float]:
    """Layer -> the sum of the losses when a share of the units of each of its groups goes, each cut alone.

    Args:
        groups, removed: as for :func:`loss_at`; a group that was not measured so far counts nothing.
    """
    found: dict[int, float] = {}
    for group in groups:
        if (layer := group["layer"]) is not None:
            found[layer] = found.get(layer, 0.0) + (loss_at(group, removed) or 0.0)
    return dict(sorted(found.items()))


def costly_layers(losses: Mapping[int, float]) -> list[int]:
    """The layers that cost more than ``COSTLY`` times what the median layer costs, the costliest first.

    Args:
        losses: as :func:`layer_losses` gives them.
    """
    most = COSTLY * statistics.median(losses.values()) if losses else 0.0
    return sorted((layer for layer, loss in losses.items() if loss > most), key=lambda layer: -losses[layer])


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
