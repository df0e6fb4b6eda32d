"""What ``--json`` of eval and bench printed, as tables and texts: whatever numbers a model has, by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST = ("perplexity.value", "parameters", "bytes", "macs")
"""Figures that stand first, in this order."""

LEFT_OUT = frozenset({"placement", "generations", "samples_text", "speedups", "timings"})
"""Parts of a row that are no figures of the model."""

NESTED = 5
FIGURES = 60
"""The most figures of one table."""

_PROMPTS = ("prompt", "input", "question")
_TEXT_NAMES = ("text", "output", "generated", "generation", "completion", "continuation", "response", "answer")
_SAMPLES = 12
_SHOWN_CHARACTERS = 2000


@dataclass(frozen=True)
class Evaluation:
    """The figures of some models, from one file.

    Attributes:
        name: of the file.
        models: their names.
        rows: name of a figure -> its value for every model, as text; "" where one has none.
        samples: prompt -> what every model wrote.
    """

    name: str
    models: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    samples: Mapping[str, tuple[str, ...]]


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
    figures = [dict(_figures(row)) for row in rows]
    written = [dict(_written(row)) for row in rows]
    for title, place, one in _listed(data, [str(row.get("name")) for row in rows]):
        if isinstance(prompt := title.get("prompt"), str):
            text = _first(one, _TEXT_NAMES)
            written[place] |= {} if text is None else {prompt[:_SHOWN_CHARACTERS]: text[:_SHOWN_CHARACTERS]}
        else:
            path = [str(title[key]) for key in ("name", "metric") if title.get(key) is not None]
            figures[place] |= {" ".join([*path, name]): value for name, value in _figures(one)}
    names = dict.fromkeys(name for found in figures for name in found)
    ordered = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    table = {key: tuple(number(found[key]) if key in found else "" for found in figures) for key in ordered[:FIGURES]}
    prompts = list(dict.fromkeys(prompt for found in written for prompt in found))[:_SAMPLES]
    samples = {prompt: tuple(found.get(prompt, "") for found in written) for prompt in prompts}
    return Evaluation(name, models, table, samples)


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


def _figures(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Every finite number in a row, by its path."""
    if isinstance(value, Mapping) and len(path) < NESTED:
        for key, inner in value.items():
            if key not in LEFT_OUT:
                yield from _figures(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        yield ".".join(path), value


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
