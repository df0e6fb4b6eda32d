"""What an analysis measured, as pictures: the cost of budgets, and of cuts of single groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...passes.analyze.reading import short_names
from .drawing import COLOURS, GREY, SHADES, Draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS_IN_A_ROW = 2
LABELLED = 12
"""Curves of one kind that a legend names; more are coloured by their layer, with a bar that says which."""


def budget_and_curves(analysis: Mapping[str, Any]) -> Draw:
    """Draws the cost of budgets, then for every kind of group one plot with a curve for each group, and the cost of
    whole layers and their parts.

    Args:
        analysis: the JSON of an analysis.
    """

    def draw() -> Figure:
        from matplotlib.figure import Figure

        kinds = list(dict.fromkeys(group["kind"] for group in analysis["groups"]))
        plots = [_budget, *(lambda axes, one, kind=kind: _kind(axes, one, kind) for kind in kinds)]
        plots += [_parts] if analysis.get("parts") else []
        rows = math.ceil(len(plots) / PLOTS_IN_A_ROW)
        figure = Figure(figsize=(8.4, 2.9 * rows))
        for number, plot in enumerate(plots, start=1):
            plot(figure.add_subplot(rows, PLOTS_IN_A_ROW, number), analysis)
        return figure

    return draw


def _budget(axes: Axes, analysis: Mapping[str, Any]) -> None:
    """Added-up and measured distance over the share that is kept."""
    tried = analysis["budgets"]
    kept = [100 * one["share"] for one in tried]
    axes.plot(kept, [one["measured"] for one in tried], "o-", ms=3, label="all cuts together")
    axes.plot(kept, [one["predicted"] for one in tried], "--", label="single cuts, added")
    axes.axhline(analysis["bound"], color=GREY, lw=0.8, ls=":")
    if analysis.get("recommended"):
        found = analysis["recommended"]
        axes.plot([100 * found["share"]], [found["measured"]], "D", ms=6, color=COLOURS[2], label="recommended")
    axes.set(xlabel=f"% of {analysis['measure']} kept", ylabel=analysis["unit"], title="budgets")
    axes.invert_xaxis()
    axes.legend(fontsize=7, frameon=False)


def _kind(axes: Axes, analysis: Mapping[str, Any], kind: str) -> None:
    """The cost of cutting each group of one kind alone."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    groups = [group for group in analysis["groups"] if group["kind"] == kind]
    names = short_names([group["name"] for group in analysis["groups"]])
    layers = [group["layer"] for group in groups]
    many = len(groups) > LABELLED and None not in layers
    scale = ScalarMappable(Normalize(0, max(len(groups) - 1, 1)), LinearSegmentedColormap.from_list("layers", SHADES))
    for number, group in enumerate(groups):
        removed = [100 * (1 - count / group["units"]) for count in group["counts"]]
        label = None if many else names[group["name"]].rpartition(":")[0] or group["name"]
        axes.plot(removed, group["losses"], lw=1, marker=".", ms=3, color=scale.to_rgba(number), label=label)
    axes.set(xlabel="% of units removed", ylabel=analysis["unit"], title=kind.replace("_", " "))
    if many and axes.figure is not None:
        scale.set_clim(min(layers), max(layers))
        axes.figure.colorbar(scale, ax=axes, label="layer")
    elif len(groups) <= LABELLED:
        axes.legend(fontsize=6, frameon=False, ncols=2 if len(groups) > 6 else 1)


def _parts(axes: Axes, analysis: Mapping[str, Any]) -> None:
    """The cost of taking out each layer, or a part of it."""
    parts: Sequence[Mapping[str, Any]] = analysis["parts"]
    kinds = list(dict.fromkeys(part["kind"] for part in parts))
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        mine = [part for part in parts if part["kind"] == kind]
        shift = width * (place - (len(kinds) - 1) / 2)
        axes.bar([part["layer"] + shift for part in mine], [part["loss"] for part in mine], width, label=kind)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="layer", ylabel=analysis["unit"], title="taken out whole")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=7, frameon=False)
