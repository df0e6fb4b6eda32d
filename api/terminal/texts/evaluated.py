"""What ``eval`` shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from ....backends.placed_file import check_file_target, placed_file
from ....backends.seen import Seen
from ....ir.errors import RequestError, printable
from ....passes.model.measure import standard_error
from ..cells import line, new_table
from ..tables import measured

if TYPE_CHECKING:
    from ...evaluating.comparison import Comparison, Difference


def compared(found: Comparison) -> list[RenderableType]:
    """Sizes and speeds; then texts, tasks, differences and generated texts, where there are some."""
    notes = (note for model in found.models for text in model.texts for note in text.unchecked)
    return [
        *measured(found.models), *map(line, notes), *_texts(found), *_tasks(found), *_differences(found),
        *_generations(found),
    ]  # fmt: skip


def result_file(asked: str | bool) -> tuple[Path, Seen] | None:
    """The file that ``--json FILE`` names, checked before any work; None where the JSON goes to stdout, or nowhere.

    Raises:
        RequestError: it exists, cannot be written, or does not end in ``.json``.
    """
    if not isinstance(asked, str):
        return None
    path = Path(asked).expanduser()
    if path.suffix != ".json":
        raise RequestError(
            f"--json {asked}: a file for the result ends in .json",
            "write --json behind the models, or --json FILE.json",
        )
    if path.exists():
        raise RequestError(f"{path} already exists", "give another name, or move it away")
    return path, check_file_target(path, force=False, begins=b"{")


def write_result(found: Comparison, place: tuple[Path, Seen]) -> None:
    """Write the JSON; the file is complete or absent."""
    path, seen = place
    with placed_file(path, seen) as made:
        made.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _texts(found: Comparison) -> list[RenderableType]:
    first = found.models[0]
    titles = ("windows", "perplexity", "log-perplexity")
    table = new_table("text", "model", *titles, right=titles)
    for at, text in enumerate(first.texts):
        for model in found.models:
            got = model.texts[at].perplexity
            error = _error(standard_error(got.by_window), 4)
            table.add_row(text.name, model.name, f"{got.windows:,}", f"{got.value:.2f}", f"{got.nll:.4f}{error}")
    return [Text(""), table] if first.texts else []


def _tasks(found: Comparison) -> list[RenderableType]:
    if not found.models[0].tasks:
        return []
    names = [model.name for model in found.models]
    table = new_table("task", "metric", "items", *names, right=("items", *names))
    for at, task in enumerate(found.models[0].tasks):
        cells = [f"{100 * (got := model.tasks[at]).value:.1f}{_error(got.error, 1, 100)}" for model in found.models]
        table.add_row(task.name, task.metric, f"{len(task.items):,}", *cells)
    return [Text(""), table]


def _differences(found: Comparison) -> list[RenderableType]:
    differences = found.differences()
    notes = [
        line(f"{model.name} splits {text.name} into other tokens: it has no difference there")
        for model in found.models
        for text, base in zip(model.texts, found.models[found.baseline].texts, strict=True)
        if text.windows != base.windows
    ]
    if not differences:
        return [*notes]
    title = f"paired difference from {found.models[found.baseline].name}"
    table = new_table(title, "model", "pairs", "difference", right=("pairs", "difference"))
    for one in differences:
        metric = "log-perplexity" if one.of == "text" else one.metric
        table.add_row(f"{one.name}, {metric}", one.model, f"{one.pairs:,}", _difference(one))
    return [Text(""), table, *notes]


def _difference(one: Difference) -> str:
    if one.of == "text":
        return f"{one.value:+.4f}{_error(one.error, 4)}"
    return f"{100 * one.value:+.1f}{_error(one.error, 1, 100)}"


def _generations(found: Comparison) -> list[RenderableType]:
    parts: list[RenderableType] = []
    base = found.models[found.baseline]
    for at, written in enumerate(base.generations):
        table = new_table(
            "model", "tokens", "as the baseline", f"after {written.prompt!r}", right=("tokens", "as the baseline")
        )
        for model in found.models:
            mine = model.generations[at]
            same = _equal(mine.tokens, written.tokens)
            tokens = f"{len(mine.tokens)}{', context full' if mine.full else ''}"
            table.add_row(model.name, tokens, "" if model is base else str(same), printable(mine.text))
        parts += [Text(""), table]
    return parts


def _equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _error(error: float | None, digits: int, scale: float = 1) -> str:
    return "" if error is None else f" ± {scale * error:.{digits}f}"
