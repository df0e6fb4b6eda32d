"""One page about runs, analyses and measurements: HTML that loads nothing and runs nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ...backends.artifact import FORMER_PLAN, MODULE_KIND, plan_file, read_plan
from ...backends.recipe import recipe_of
from ...ir.errors import RequestError, printable
from .curves import budget_and_curves
from .drawing import Draw, can_draw, svg
from .evaluations import Evaluation, number
from .training import draw_losses, losses_of
from .units import UnitRow, draw_kept, draw_scores, kept_rows, score_rows

PAGE_BEGINS = b"<!doctype html>\n<!-- Made by fxprune report. -->"
"""The first bytes of every page."""

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class ShownRun:
    """A run of ``apply``.

    Attributes:
        name: of its directory.
        record: the content of its ``fxprune.json``.
        slices: of its plan: (tensor name, dimension) -> kept positions.
        bytes: of its weight files; None where they are not there.
    """

    name: str
    record: Mapping[str, Any]
    slices: Mapping[tuple[str, int], Any] = field(default_factory=dict)
    bytes: int | None = None


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    Attributes:
        runs: side by side.
        analyses: name of a file -> the JSON of an analysis.
        scores: name of a file -> scores by group.
        evaluations: measurements.
    """

    runs: Sequence[ShownRun] = ()
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()


def run_at(folder: Path, record: Mapping[str, Any]) -> ShownRun:
    """The run whose result is in a directory."""
    slices = read_plan(folder) if plan_file(folder).is_file() else {}
    weights = [path for path in sorted(folder.glob("*.safetensors")) if path.name != FORMER_PLAN]
    return ShownRun(folder.resolve().name, record, slices, sum(path.stat().st_size for path in weights) or None)


def page(shown: Shown) -> str:
    """The page, with pictures.

    Raises:
        RequestError: jinja2 is not there.
    """
    return _rendered("page.html", shown, pictures=True)


def fragment(run: ShownRun) -> str:
    """What a notebook shows of a run; without pictures where matplotlib is not there."""
    if importlib.util.find_spec("jinja2") is None:
        return ""
    return _rendered("fragment.html", Shown([run]), pictures=can_draw())


def _rendered(template: str, shown: Shown, *, pictures: bool) -> str:
    if importlib.util.find_spec("jinja2") is None:
        raise RequestError("jinja2 is not there, which makes pages", "install the extra: pip install 'fxprune[report]'")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    numbers = count(1)

    def picture(draw: Draw) -> Markup | None:
        # What matplotlib writes is markup of its own, in which names are escaped.
        return Markup(svg(draw, next(numbers))) if pictures else None  # nosec B704

    # Names and texts come from files of others: whatever is put into the page is escaped, in every template.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["plain"] = lambda value: printable(_word(value), lines=True)
    return environment.get_template(template).render(
        runs=[_run(run, picture) for run in shown.runs],
        sizes=_sizes(shown.runs),
        analyses=[_analysis(name, found, picture) for name, found in shown.analyses.items()],
        scores=[_scores(name, found, picture) for name, found in shown.scores.items()],
        evaluations=shown.evaluations,
        of_models=any(run.record.get("artifact") != MODULE_KIND for run in shown.runs),
    )


def _run(run: ShownRun, picture: Any) -> dict[str, Any]:
    record = run.record
    passes, groups = _mapping(record.get("passes")), _rows(record.get("groups"))
    kept: list[UnitRow] = kept_rows(groups, run.slices)
    losses = losses_of(passes)
    return {
        "name": run.name,
        "source": record.get("model") or "a module",
        "pipeline": record.get("pipeline", ""),
        "form": " ".join(filter(None, (str(record.get("form") or ""), str(record.get("model_type") or "")))),
        "removed": _removed(groups),
        "dropped": _dropped(passes),
        "kept": picture(draw_kept(kept)) if kept else None,
        "losses": picture(draw_losses(losses)) if losses else None,
        "trained": [(name, len(values), values[0], values[-1]) for name, values in losses.items()],
        "checks": [(name.replace("_", " "), value) for name, value in _mapping(record.get("checks")).items()],
        "worst": record.get("worst_difference"),
        "recipe": recipe_of(record),
    }


def _sizes(runs: Sequence[ShownRun]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Measure -> for every run what there was, what there is, and the share; a measure that no run has is left out."""
    rows: list[tuple[str, list[tuple[str, str, str]]]] = []
    calls = [str(of) for run in runs if (of := _mapping(run.record.get("macs")).get("of"))]
    call = " / ".join(dict.fromkeys(calls)) or "with the example inputs"
    for key, title in (("parameters", "parameters"), ("macs", f"multiply-accumulates of one call, {call}")):
        rows.append((title, [_change(_mapping(run.record.get(key))) for run in runs]))
    stored = [_change({"before": _dense_bytes(run), "after": run.bytes}, " B") for run in runs]
    rows.append(("bytes of weights; before: in the same data type", stored))
    budgets = [_memory(_mapping(run.record.get("passes"))) for run in runs]
    rows.append(
        ("memory budget: weights and cache", [("", f"{value:,} B", "") if value else _NONE for value in budgets])
    )
    return [(title, cells) for title, cells in rows if any(cell != _NONE for cell in cells)]


_NONE = ("", "", "")


def _dense_bytes(run: ShownRun) -> int | None:
    """What the dense weights take in the data type of the pruned ones, as far as they have one."""
    sizes = _mapping(run.record.get("parameters"))
    before, after = sizes.get("before"), sizes.get("after")
    if run.bytes is None or not isinstance(before, int) or not isinstance(after, int) or not after:
        return None
    each = run.bytes / after
    width = next((width for width in (1, 2, 4, 8) if width <= each < 1.25 * width + 0.1), None)
    return None if width is None else before * width


def _change(change: Mapping[str, Any], unit: str = "") -> tuple[str, str, str]:
    before, after = change.get("before"), change.get("after")
    if not isinstance(after, int):
        return _NONE
    if not isinstance(before, int) or not before:
        return "", f"{after:,}{unit}", ""
    return f"{before:,}{unit}", f"{after:,}{unit}", f"{after / before:.1%}"


def _memory(passes: Mapping[str, Any]) -> int | None:
    for entry in passes.values():
        allocation = _mapping(_mapping(entry).get("allocation"))
        if allocation.get("measure") == "memory" and isinstance(allocation.get("reached"), int):
            return int(allocation["reached"])
    return None


def _removed(groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Kind -> units before and after, over all groups that lost some."""
    found: dict[str, tuple[int, int]] = {}
    for group in groups:
        before, after = group.get("before"), group.get("after")
        if isinstance(before, int) and isinstance(after, int):
            total, left = found.get(str(group.get("kind")), (0, 0))
            found[str(group.get("kind"))] = (total + before, left + after)
    return [(kind.replace("_", " "), *units) for kind, units in found.items()]


def _dropped(passes: Mapping[str, Any]) -> list[str]:
    entry = _mapping(passes.get("drop"))
    layers = [f"layer {layer}" for layer in entry.get("dropped") or () if isinstance(layer, int)]
    return layers + [str(part.get("module")) for part in _rows(entry.get("sub_blocks"))]


def _analysis(name: str, found: Mapping[str, Any], picture: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": found.get("model", ""),
        "unit": found.get("unit", ""),
        "bound": found.get("bound", ""),
        "target": found.get("target"),
        "measured": number(float(_mapping(found.get("recommended")).get("measured") or 0)),
        "spared": found.get("spared") or [],
        "costly": [f"{one.get('layer')} ({number(float(one.get('loss') or 0))})" for one in _rows(found.get("costly"))],
        "commands": [(str(one.get("for")), str(one.get("command"))) for one in _rows(found.get("next"))],
        "picture": picture(budget_and_curves(found)),
    }


def _scores(name: str, scores: Mapping[str, Any], picture: Any) -> dict[str, Any]:
    rows = score_rows(scores)
    return {"name": name, "picture": picture(draw_scores(rows)) if rows else None}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def _word(value: Any) -> str:
    """A value of a record as text; yes and no for what is true or not."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
