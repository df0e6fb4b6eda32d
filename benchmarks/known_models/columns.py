"""What the page shows of tasks and answers: columns of its table, and a table of its own for each task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fxprune.benchmarks.known_models.zero_shot import PAPER, accuracy, mean_accuracy

Row = Mapping[str, Any]

OTHERS = ("blimp", "lambada")
"""Tasks besides those of the paper."""

NOT_MEASURED = "-"

EXPLAINED = """\
The mean accuracy is over the seven tasks of LLM-Pruner's table 1, in percent, ± the standard error of its difference
from the dense model, paired over items and draws; `of dense` is its share of the dense model's accuracy on the same
items. `exact` is the share of thirty short prompts (arithmetic, copying, formats, each with examples) of which the
first line is the answer. `repeated` is the share of 4-grams of tokens that an answer to one of a hundred instructions
has had already (seq-rep-4, arXiv 1908.04319), `agreement` the ROUGE-L F1 of these answers with the dense model's,
`first` the share of them that begin with the same word."""


def task_difference(rows: Sequence[Row], others: Sequence[Row], names: Sequence[str] = PAPER) -> tuple[float, float]:
    """Mean difference of the accuracy and its standard error, paired by items.

    Args:
        rows: of one method, a row for every draw.
        others: of the other, as many; or one, with which all are compared. Where one has more items than the other, the
            first count, which are the same.
        names: of the tasks, each of which weighs the same.

    The error has two parts, added as variances: that of the means over items of the differences, each a mean over
    draws; and that of the mean over draws, where there are several.
    """
    pairs = list(zip(rows, others * len(rows) if len(others) == 1 else others, strict=True))
    variance, means = 0.0, []
    for name in names:
        by_draw = [
            [int(a) - int(b) for a, b in zip(one["tasks"][name], two["tasks"][name], strict=False)]
            for one, two in pairs
        ]
        by_item = [statistics.mean(item) for item in zip(*by_draw, strict=True)]
        variance += statistics.variance(by_item) / len(by_item) / len(names) ** 2
        means.append([statistics.mean(draw) for draw in by_draw])
    of_draws = [statistics.mean(draw) for draw in zip(*means, strict=True)]
    if len(of_draws) > 1:
        variance += statistics.variance(of_draws) / len(of_draws)
    return statistics.mean(of_draws), math.sqrt(variance)


def headers() -> list[str]:
    """The names of the columns that follow those of the texts."""
    return [name for name, _ in _COLUMNS]


def cells(found: Sequence[Row], dense: Row) -> list[str]:
    """What stands in the columns of a line.

    Args:
        found: rows of one method and size, one for every draw; the dense row for its own line.
        dense: the dense row.
    """
    return [cell(found, dense) for _, cell in _COLUMNS]


def has_tasks(row: Row) -> bool:
    """Whether tasks and answers were measured for a row."""
    return {"tasks", "written"} <= row.keys()


def by_task(rows: Mapping[str, Row], dense: str) -> list[str]:
    """A table with a line for every task and a column for every model, in percent.

    Args:
        rows: name of the column -> row.
        dense: the column with which the others are compared; ± is the standard error of the paired difference.
    """
    names = [name for name, row in rows.items() if has_tasks(row)]
    lines = [f"| task | items | {' | '.join(names)} |", f"|{'---|' * (2 + len(names))}"]
    for task in (*PAPER, *OTHERS):
        found = [_of_task(rows[name], rows[dense], (task,), own=name == dense) for name in names]
        lines.append(f"| {task} | {len(rows[dense]['tasks'][task])} | {' | '.join(found)} |")
    means = [_of_task(rows[name], rows[dense], PAPER, own=name == dense) for name in names]
    shares = [f"{_share([rows[name]], rows[dense]):.2f}" for name in names]
    lines.append(f"| mean of the first seven | | {' | '.join(means)} |")
    lines.append(f"| of dense, % | | {' | '.join(shares)} |")
    return lines


def _of_task(row: Row, dense: Row, names: Sequence[str], *, own: bool) -> str:
    value = 100 * statistics.mean(accuracy(row["tasks"][name]) for name in names)
    return f"{value:.1f}" if own else f"{value:.1f} ± {100 * task_difference([row], [dense], names)[1]:.1f}"


def _count(row: Row) -> int:
    return max(len(row["tasks"][name]) for name in PAPER)


def _share(found: Sequence[Row], dense: Row) -> float:
    """The mean accuracy in percent of the dense model's on the same items."""
    return statistics.mean(
        100 * mean_accuracy(row["tasks"]) / mean_accuracy(dense["tasks"], _count(row)) for row in found
    )


def _mean(found: Sequence[Row], dense: Row) -> str:
    value = 100 * statistics.mean(mean_accuracy(row["tasks"]) for row in found)
    if found[0] is dense:
        return f"{value:.1f}"
    return f"{value:.1f} ± {100 * task_difference(found, [dense])[1]:.1f}"


def _of_dense(found: Sequence[Row], dense: Row) -> str:
    return f"{_share(found, dense):.1f}"


def _task(name: str) -> Callable[[Sequence[Row], Row], str]:
    def cell(found: Sequence[Row], _dense: Row) -> str:
        return f"{100 * statistics.mean(accuracy(row['tasks'][name]) for row in found):.1f}"

    return cell


def _exact(found: Sequence[Row], _dense: Row) -> str:
    return f"{100 * statistics.mean(accuracy(row['written']['exact']) for row in found):.0f}"


def _repeated(found: Sequence[Row], _dense: Row) -> str:
    return f"{100 * statistics.mean(statistics.mean(row['written']['repeated']) for row in found):.0f}"


def _agreement(found: Sequence[Row], dense: Row) -> str:
    if found[0] is dense:
        return "100"
    return f"{100 * statistics.mean(statistics.mean(row['written']['agreement']) for row in found):.0f}"


def _first(found: Sequence[Row], dense: Row) -> str:
    if found[0] is dense:
        return "100"
    return f"{100 * statistics.mean(accuracy(row['written']['first']) for row in found):.0f}"


def _measured(cell: Callable[[Sequence[Row], Row], str]) -> Callable[[Sequence[Row], Row], str]:
    """A cell for those rows of which tasks were measured."""

    def shown(found: Sequence[Row], dense: Row) -> str:
        held = [row for row in found if has_tasks(row)]
        return cell(held, dense) if held and has_tasks(dense) else NOT_MEASURED

    return shown


_COLUMNS = tuple(
    (name, _measured(cell))
    for name, cell in (
        ("mean accuracy", _mean),
        ("of dense", _of_dense),
        ("blimp", _task("blimp")),
        ("lambada", _task("lambada")),
        ("exact", _exact),
        ("repeated", _repeated),
        ("agreement", _agreement),
        ("first", _first),
    )
)
