"""What ``--json`` of eval and bench printed, as tables and texts: whatever numbers a model has, by their names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .figure_names import SPREAD, title_of

FIRST = ("perplexity", "log-perplexity", "parameters", "weights, bytes", "multiply-accumulates")
"""Figures whose names begin so stand first, in this order."""

LEFT_OUT = frozenset({"placement", "generations", "samples_text"})
"""Parts of a row that are no figures of the model."""

NESTED = 5
FIGURES = 60
"""The most figures of one table."""

_PROMPTS = ("prompt", "input", "question")
_TEXT_NAMES = ("text", "output", "generated", "generation", "completion", "continuation", "response", "answer")
_WITH_ERRORS = ("value", "log_perplexity")
"""Figures beside which their standard error stands."""

_LISTS = ("timings",)
"""Lists whose entries are figures, of one batch size each."""

_SAMPLES = 12
_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True)
class PairedDifference:
    """What a model has more than the baseline, as text.

    Attributes:
        what: the text or task, and the metric.
        model: the model.
        pairs: how many windows or items.
        value: the difference, with its standard error.
        errors: the difference as a multiple of its standard error; "" where there is none.
    """

    what: str
    model: str
    pairs: str
    value: str
    errors: str


@dataclass(frozen=True)
class Evaluation:
    """The figures of some models, from one file.

    Attributes:
        name: of the file.
        models: their names.
        rows: name of a figure -> its value for every model, as text; "" where one has none.
        samples: prompt -> what every model wrote.
        baseline: the model that the others are compared with; "" where none is.
        differences: of the others from it.
    """

    name: str
    models: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    samples: Mapping[str, tuple[str, ...]]
    baseline: str = ""
    differences: tuple[PairedDifference, ...] = ()


def read_evaluation(name: str, data: Mapping[str, Any]) -> Evaluation | None:
    """Read leniently; None where there are no models in it.

    Args:
        name: of the file.
        data: what it holds.
    """
    held = data.get("models")
    rows = [row for row in held if isinstance(row, Mapping)] if isinstance(held, list) else []
    if not rows:
        return None
    models = tuple(_last(str(row.get("name", f"model {number}"))) for number, row in enumerate(rows, start=1))
    # Perplexity on the first text stands in the rows of the models too.
    twice = {"perplexity"} if data.get("texts") else set()
    figures = [dict(_titled({key: row[key] for key in row if key not in twice}, data)) for row in rows]
    written = [dict(_written(row)) for row in rows]
    for title, place, one in _listed(data, [str(row.get("name")) for row in rows]):
        if isinstance(prompt := title.get("prompt"), str):
            text = _first(one, _TEXT_NAMES)
            written[place] |= {} if text is None else {prompt[:_SHOWN_CHARACTERS]: text[:_SHOWN_CHARACTERS]}
        else:
            path = [str(title[key]) for key in ("name", "metric") if title.get(key) is not None]
            figures[place] |= {
                f"{what}: {_last(path[0])}" if path else what: value for what, value in _of(one, path, data)
            }
    names = dict.fromkeys(name for found in figures for name in found)
    ordered = sorted(names, key=_place)
    table = {key: tuple(found.get(key, "") for found in figures) for key in ordered[:FIGURES]}
    prompts = list(dict.fromkeys(prompt for found in written for prompt in found))[:_SAMPLES]
    samples = {prompt: tuple(found.get(prompt, "") for found in written) for prompt in prompts}
    return Evaluation(name, models, table, samples, _last(str(data.get("baseline") or "")), tuple(_differences(data)))


def _place(title: str) -> int:
    """Where a figure stands."""
    return next((at for at, begins in enumerate(FIRST) if title.startswith(begins)), len(FIRST))


def _of(one: Mapping[str, Any], path: Sequence[str], data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures of a model in a text or a task; the value of a task is called as its metric."""
    for title, value in _titled(one, data):
        yield (path[1] if title == "value" and len(path) > 1 else title), value


def _differences(data: Mapping[str, Any]) -> Iterator[PairedDifference]:
    """The paired differences that eval measured."""
    held = data.get("differences")
    for one in held if isinstance(held, list) else ():
        if not isinstance(one, Mapping) or not _is_number(one.get("difference")):
            continue
        value, error = float(one["difference"]), one.get("standard_error")
        title = title_of([str(one.get("metric", ""))], data)
        said = float(error) if _is_number(error) and error is not None else None
        yield PairedDifference(
            f"{_last(str(one.get('name', '')))}, {title}",
            _last(str(one.get("model", ""))),
            number(one["pairs"]) if _is_number(one.get("pairs")) else "",
            f"{value:+.4f}" + (f" ± {said:.4f}" if said is not None else ""),
            f"{abs(value) / said:.1f}" if said else "",
        )


def _listed(
    data: Mapping[str, Any], names: Sequence[str]
) -> Iterator[tuple[Mapping[str, Any], int, Mapping[str, Any]]]:
    """What lists beside the models hold for each: a text, task or prompt, the place of the model, its entry."""
    for key, entries in data.items():
        for entry in entries if isinstance(entries, list) and key != "models" else ():
            held = entry.get("models") if isinstance(entry, Mapping) else None
            for one in held if isinstance(held, list) else ():
                if isinstance(one, Mapping) and str(one.get("name")) in names:
                    yield entry, names.index(str(one.get("name"))), one


def number(value: float) -> str:
    """A number as people read it."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _titled(row: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every figure of a row by what it is called, as text."""
    for path, value in _figures(row):
        yield title_of(path, data), value


def _figures(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every finite number in a row, by its path; with its range or its standard error where it has one."""
    if isinstance(value, Mapping) and value and set(value) <= set(SPREAD) and all(map(_is_number, value.values())):
        low, high = value.get("low"), value.get("high")
        spread = "" if low is None or high is None else f" ({number(low)} to {number(high)})"
        yield path, number(value.get("median", low or high or 0)) + spread
    elif isinstance(value, Mapping) and len(path) < NESTED:
        batch = (f"batch {value['batch']}",) if "batch" in value else ()
        error = value.get("standard_error")
        for key, inner in value.items():
            if key in LEFT_OUT or (key == "batch" and batch):
                continue
            if key in _WITH_ERRORS and _is_number(inner) and _is_number(error):
                yield (*path, str(key)), f"{inner:.4f} ± {error:.4f}"
            elif key != "standard_error":
                yield from (((*inside, *batch), text) for inside, text in _figures(inner, (*path, str(key))))
    elif isinstance(value, list) and path and path[-1] in _LISTS:
        for inner in value:
            yield from _figures(inner, path)
    elif _is_number(value):
        yield path, number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _written(value: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every prompt in a row with what the model wrote after it."""
    if depth > NESTED:
        return
    if isinstance(value, Mapping):
        prompt, text = _first(value, _PROMPTS), _first(value, _TEXT_NAMES)
        if prompt is not None and text is not None:
            yield prompt[:_SHOWN_CHARACTERS], text[:_SHOWN_CHARACTERS]
            return
        inner: Sequence[Any] = list(value.values())
    else:
        inner = value if isinstance(value, list) else []
    for one in inner:
        yield from _written(one, depth + 1)


def _first(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first text that a sample has under one of these names; of several texts, the first."""
    for name in names:
        found = value.get(name)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, str):
            return found
    return None
