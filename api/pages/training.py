"""The loss of recovery training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .drawing import Draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 20
"""Of so many steps a mean is drawn beside the single ones, from four times as many on."""


def losses_of(passes: Mapping[str, Any]) -> dict[str, list[float]]:
    """Pass -> the loss of every step, for the passes of a record that trained."""
    return {
        name: [float(value) for value in entry["loss"]]
        for name, entry in passes.items()
        if isinstance(entry, Mapping)
        and isinstance(entry.get("loss"), Sequence)
        and not isinstance(entry["loss"], str)
        and len(entry["loss"]) > 1
        and all(isinstance(value, int | float) for value in entry["loss"])
    }


def draw_losses(losses: Mapping[str, Sequence[float]]) -> Draw:
    """Draws the loss of every step, one line for each pass."""

    def draw() -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 2.6))
        axes = figure.add_subplot()
        for name, values in losses.items():
            many = len(values) >= 4 * SMOOTHED
            (line,) = axes.plot(range(1, len(values) + 1), values, lw=0.8, alpha=0.4 if many else 1, label=name)
            if many:
                means = [sum(values[at : at + SMOOTHED]) / SMOOTHED for at in range(len(values) - SMOOTHED + 1)]
                axes.plot(range(SMOOTHED, len(values) + 1), means, lw=1.4, color=line.get_color())
        axes.set(xlabel="step", ylabel="loss")
        axes.legend(fontsize=7, frameon=False)
        return figure

    return draw
