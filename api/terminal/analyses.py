"""The result of ``analyze`` as tables for a terminal of 80 columns."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from ...passes.analyze.reading import COSTLY, HALF_THE_UNITS, layer_losses, loss_at, short_names
from ..analyzing.next_command import next_commands
from .cells import Copied, line, new_table

if TYPE_CHECKING:
    from ..analyzing.result import AnalysisResult

CUTS = (0.25, 0.5, 0.75)
"""Shares of the units of a group whose loss the table shows."""

FEWEST_LAYERS = 3
"""A model with fewer layers has no median layer."""


def analysis(result: AnalysisResult) -> list[RenderableType]:
    """What cuts cost, what budgets cost, the recommendation, and the next command."""
    report = result.report
    head = f"{result.model}: {result.parameters:,} parameters; {report['pass']}; each cut alone, in {report['unit']}"
    missing = [f"not measured: {name}: {why}" for name, why in report["not_measured"].items()]
    missing += [f"not prunable: {name}: {why}" for name, why in report["frozen"].items()]
    shown = missing[:3] + ([f"and {len(missing) - 3} more, see --json"] if len(missing) > 3 else [])
    return [
        line(head), _cuts(report), *map(line, shown), Text(""), _budgets(report), Text(""),
        *map(line, [*_costly(result), *_recommended(result)]), *_next(result),
    ]  # fmt: skip


def _cuts(report: Mapping[str, Any]) -> RenderableType:
    titles = [f"-{share:.0%}" for share in CUTS]
    right = ["units", *titles, "all", "kept"]
    table = new_table("cut", *right, right=right)
    names = short_names([entry["name"] for entry in (*report["groups"], *report["parts"])])
    for entry in report["groups"]:
        units = str(entry["units"]) if entry["parents"] == 1 else f"{entry['parents']} x {entry['units']}"
        losses = [_number(loss_at(entry, share)) for share in CUTS]
        kept = f"{entry['kept'] / entry['units']:.0%}" if report["recommended"] else ""
        table.add_row(names[entry["name"]], units, *losses, "", kept)
    for entry in report["parts"]:
        empty = [""] * len(CUTS)
        table.add_row(f"{names[entry['name']]}:{entry['kind']}", "", *empty, _number(entry["loss"]), "")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _budgets(report: Mapping[str, Any]) -> RenderableType:
    right = [report["measure"], "added up", "all together"]
    table = new_table(*right, right=right)
    for one in report["budgets"]:
        table.add_row(f"{one['share']:.2f}", _number(one["predicted"]), _number(one["measured"]))
    return table


def _costly(result: AnalysisResult) -> list[str]:
    """Which layers to spare."""
    losses = layer_losses(result.report["groups"], HALF_THE_UNITS)
    if len(losses) < FEWEST_LAYERS:
        return ["layers to spare: told of three layers or more, by what the median one costs"] if losses else []
    median = (
        f"half of the units of the median layer costs {statistics.median(losses.values()):.4f} {result.report['unit']}"
    )
    if not result.costly:
        return [f"layers to spare: none stands out; {median}, and of none more than {COSTLY:g} times that"]
    costs = ", ".join(f"{layer} ({loss:.4f})" for layer, loss in result.costly.items())
    return [f"layers to spare: {costs}; {median}"]


def _recommended(result: AnalysisResult) -> list[str]:
    report, bound = result.report, f"{result.report['bound']:g}"
    found = report["recommended"]
    if found is None:
        return [f"no cut of 1% or more stays within --bound {bound}; give a larger one to see what it costs"]
    unit = report["unit"]
    said = [f"recommended: {result.target}, the largest cut that stays within --bound {bound}: {found['measured']:.4f}"]
    said[0] += f" {unit}"
    if result.spared:
        said.append(f"it leaves whole: layer{'s' if len(result.spared) > 1 else ''} {_runs(result.spared)}")
    for one in report["equal_widths"]:
        where = "in all layers" if one["layers"] is None else "in layers {}:{}".format(*one["layers"])
        said.append(f"the same budget with equal widths {where}: {one['measured']:.4f} {unit}")
    if all(one["measured"] <= report["bound"] for one in report["budgets"]):
        said.append(
            "note: not even the smallest budget that was tried costs more than --bound; so it is of a model that is not"
            " trained, or with data that says nothing about it: then no recommendation means anything"
        )
    if result.asked.scores is None and result.placement is not None:  # of a module, none is kept
        said.append("with --scores FILE, what was measured is kept, and the next command does not measure it again")
    return said


def _runs(numbers: Iterable[int]) -> str:
    """Ascending numbers, those that follow one another as a range: ``0, 4..7``."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _next(result: AnalysisResult) -> list[RenderableType]:
    """The next commands, each on a line of its own however long it is, so that it can be copied."""
    return [Copied(f"next, {why}:\n  {command}") for why, command in next_commands(result.asked, result.report)]
