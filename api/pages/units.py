"""Units of groups as pictures: which were kept, and how they were scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .drawing import COLOURS, GREY, Draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_ROWS = 64
"""The most rows of one picture: a model has no more layers, or only the first of them are shown."""

ROW_CELLS = 1024
"""The most cells in which the units of a row are drawn; of more units, several share one."""

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UnitRow:
    """The units of one group.

    Attributes:
        name: of the group, shortened.
        kind: what its units are.
        values: float64 ``[units]``.
    """

    name: str
    kind: str
    values: Matrix


def kept_rows(groups: Sequence[Mapping[str, Any]], slices: Mapping[tuple[str, int], Any]) -> list[UnitRow]:
    """Which units were kept: 1 or 0, for every group of a record whose units a plan shows.

    Args:
        groups: of ``fxprune.json``.
        slices: of its plan: (tensor name, dimension) -> kept positions.
    """
    rows = []
    for group in groups:
        name, before, after = group.get("name"), group.get("before"), group.get("after")
        if not isinstance(name, str) or not isinstance(before, int) or not isinstance(after, int):
            continue
        units = _units(name.rpartition(":")[0], before, after, slices)
        if units is not None:
            values = np.zeros(before)
            values[units] = 1
            rows.append(UnitRow(name, str(group.get("kind")), values))
    return rows


def _units(path: str, before: int, after: int, slices: Mapping[tuple[str, int], Any]) -> Any:
    """The kept units of a group, from a tensor of its module that holds each of them in one piece of equal length."""
    for (tensor, _), kept in slices.items():
        if not tensor.startswith(f"{path}.") or after < 1 or len(kept) % after:
            continue
        length = len(kept) // after
        units, counts = np.unique(kept // length, return_counts=True)
        if len(units) == after and (counts == length).all() and units[-1] < before:
            return units
    return None


def score_rows(scores: Mapping[str, Any]) -> list[UnitRow]:
    """Scores by group, each divided by the largest of its group: groups need not have one scale."""
    rows = []
    for name, values in scores.items():
        found = np.asarray(values, dtype=np.float64)
        if found.ndim != 1 or not len(found) or not np.isfinite(found).any():
            continue
        largest = np.nanmax(np.where(np.isfinite(found), np.abs(found), 0))
        rows.append(UnitRow(name, name.rpartition(":")[2], np.abs(found) / (largest or 1.0)))
    return rows


def draw_kept(rows: Sequence[UnitRow]) -> Draw:
    """Draws which units stayed, a row for each group, a picture for each kind."""

    def draw() -> Figure:
        from matplotlib.colors import LinearSegmentedColormap

        shades = LinearSegmentedColormap.from_list("kept", ["#88888833", COLOURS[0]])
        counts = {row.name: f"{row.values.sum():,.0f} of {len(row.values):,}" for row in rows}
        return _grid(rows, {"cmap": shades, "vmin": 0, "vmax": 1}, counts, "")

    return draw


def draw_scores(rows: Sequence[UnitRow]) -> Draw:
    """Draws scores as heat maps, a row for each group, a picture for each kind, on a scale of powers of ten."""
    logs = [UnitRow(row.name, row.kind, np.log10(np.maximum(row.values, 1e-4))) for row in rows]

    def draw() -> Figure:
        lowest = min(float(np.nanmin(row.values)) for row in logs)
        style = {"cmap": "viridis", "vmin": lowest, "vmax": 0}
        counts = {row.name: f"{len(row.values):,}" for row in rows}
        return _grid(logs, style, counts, "score / largest of its row, log10")

    return draw


def cells_of(rows: Sequence[UnitRow]) -> Matrix:
    """The rows of a picture, all of one length, whatever the numbers of their units: float64 ``[rows, cells]``. Where a
    row has more units than there are cells, a cell is their mean."""
    cells = min(max(len(row.values) for row in rows), ROW_CELLS)
    image = np.empty((len(rows), cells))
    for place, row in enumerate(rows):
        starts = np.arange(cells) * len(row.values) // cells
        sizes = np.maximum(np.diff(starts, append=len(row.values)), 1)
        image[place] = np.add.reduceat(row.values, starts) / sizes
    return image


def _grid(rows: Sequence[UnitRow], style: Mapping[str, Any], counts: Mapping[str, str], scale: str) -> Figure:
    """One picture for each kind; beside every row stands what ``counts`` says of it."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row.kind for row in rows))
    held = {kind: [row for row in rows if row.kind == kind][:SHOWN_ROWS] for kind in kinds}
    heights = [max(1.0, 0.16 * len(held[kind])) + 0.75 for kind in kinds]
    figure = Figure(figsize=(8.4, sum(heights)))
    axes = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for plot, kind in zip(axes, kinds, strict=True):
        mine = held[kind]
        # One layer with far more units than the others must not squeeze theirs: each row is as long as all its units.
        widths = {len(row.values) for row in mine}
        across = (0.0, 100.0) if len(widths) > 1 or max(widths) > ROW_CELLS else (-0.5, max(widths) - 0.5)
        shown = plot.imshow(
            cells_of(mine), aspect="auto", interpolation="nearest", extent=(*across, len(mine) - 0.5, -0.5), **style
        )
        step = max(1, len(mine) // 16)
        plot.set_yticks(range(0, len(mine), step), [_short(row.name) for row in mine[::step]], fontsize=7)
        for place, row in list(enumerate(mine))[::step]:
            beside = {"transform": plot.get_yaxis_transform(), "fontsize": 7, "va": "center", "color": GREY}
            plot.text(1.01, place, counts[row.name], **beside)
        label = "unit" if across[0] < 0 else "% of the units of a group, in their order"
        plot.set(title=kind.replace("_", " "), xlabel=label)
        plot.xaxis.get_major_locator().set_params(integer=True)
        plot.grid(visible=False)
        for spine in plot.spines.values():
            spine.set_color(GREY)
        if scale:
            figure.colorbar(shown, ax=plot, label=scale if len(kinds) == 1 else "log10", pad=0.08)
    return figure


def _short(name: str) -> str:
    """The end of a group's module path, from the number of its layer on."""
    parts = name.rpartition(":")[0].split(".")
    first = next((at for at, part in enumerate(parts) if part.isdigit()), max(0, len(parts) - 2))
    text = ".".join(parts[first:]) or name
    return text if len(text) <= 28 else f"…{text[-27:]}"
