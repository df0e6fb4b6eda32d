"""The section of docs/quality.md on a model that people know, from measured rows."""

from __future__ import annotations

import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.benchmarks.known_models.runs import CALIBRATED, DRAWS, EVALUATED, KEPT, METHODS, PROMPTS, TEXTS, Run, runs

TITLE = "## A model that people know"
BEST, WORST = "best", "paper"
"""The methods whose answers are shown beside the dense model's."""


def with_section(page: str, text: str) -> str:
    """A page whose section of this title is replaced, or added at its end."""
    before, found, rest = page.partition(f"{TITLE}\n")
    after = re.search(r"^## ", rest, re.MULTILINE) if found else None
    return before.rstrip("\n") + "\n\n" + text + ("\n" + rest[after.start() :] if after else "")


def section_of(page: str) -> str:
    """The section of a page, with its title; empty where it has none."""
    _, found, rest = page.partition(f"{TITLE}\n")
    after = re.search(r"^## ", rest, re.MULTILINE)
    return found + (rest[: after.start()] if after else rest)


def difference(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], text: str
) -> tuple[float, float]:
    """Mean difference of the log-perplexity on a text and its standard error, paired by windows.

    Args:
        rows: of one method, a row for every draw.
        others: of the other, as many; or one, with which all are compared.
        text: its name.

    The error has two parts, added as variances: that of the mean over windows of the differences, each a mean over
    draws; and that of the mean over draws, where there are several.
    """
    pairs = list(zip(rows, others * len(rows) if len(others) == 1 else others, strict=True))
    by_draw = [[a - b for a, b in zip(one["losses"][text], two["losses"][text], strict=True)] for one, two in pairs]
    by_window = [statistics.mean(window) for window in zip(*by_draw, strict=True)]
    variance = statistics.variance(by_window) / len(by_window)
    if len(by_draw) > 1:
        variance += statistics.variance([statistics.mean(draw) for draw in by_draw]) / len(by_draw)
    return statistics.mean(by_window), math.sqrt(variance)


def section(rows: Mapping[str, Any], model: str) -> str:
    """The text of the section, with what has been measured so far."""
    dense = rows[Run(model, "dense").key]
    means = " / ".join(f"{math.exp(statistics.mean(dense['losses'][text])):.2f}" for text in TEXTS)
    dates = sorted(row["date"] for key, row in rows.items() if key.startswith(f"{model}|"))
    measured = sum(run.key in rows for run in runs(model))
    lines = [
        TITLE,
        "",
        f"{model}, nothing trained: dense {means} on {' / '.join(TEXTS)}.",
        f"Calibration reads {CALIBRATED} windows of 128 tokens of all three texts, `paper` and `taylor` ten of them;",
        f"perplexity is of the first {EVALUATED} windows of each `-eval` text. Nothing is chosen on these: for that,",
        "there is `--split validation`. Kept is of all parameters, embeddings included. The increase of the",
        "log-perplexity is a mean over draws of the calibration windows, ± its standard error, paired over windows and",
        "over draws. CPU seconds of the passes, peak memory of the process.",
        f"{measured} of {len(list(runs(model)))} rows have been measured.",
        f"{platform.machine()}, Python {platform.python_version()}, {dates[0]} to {dates[-1]}.",
        "",
        "    python -m fxprune.benchmarks.known_models.table --models MODELS --text TEXTS --write docs/quality.md",
        "",
        f"| kept | method | draws | perplexity | {' | '.join(f'increase, {text}' for text in TEXTS)} | CPU s | GB |",
        f"|{'---|' * (6 + len(TEXTS))}",
    ]
    for kept in sorted(KEPT, reverse=True):
        lines += [_line(_draws(rows, model, method, kept), [dense], kept, method) for method in METHODS
                  if _draws(rows, model, method, kept)]  # fmt: skip
    return "\n".join([*lines, "", *_answers(rows, model), ""])


def _draws(rows: Mapping[str, Any], model: str, method: str, kept: float) -> list[Mapping[str, Any]]:
    keys = [Run(model, method, kept, seed).key for seed in range(DRAWS)]
    return [rows[key] for key in keys if key in rows]


def _line(found: Sequence[Mapping[str, Any]], dense: Sequence[Mapping[str, Any]], kept: float, method: str) -> str:
    means = [statistics.mean(statistics.mean(row["losses"][text]) for row in found) for text in TEXTS]
    apart = [difference(found, dense, text) for text in TEXTS]
    cells = [
        f"{kept:g}", method, str(len(found)), " / ".join(f"{math.exp(mean):.2f}" for mean in means),
        *(f"{mean:.3f} ± {error:.3f}" for mean, error in apart),
        f"{statistics.mean(row['seconds'] for row in found):.0f}", f"{max(row['peak_gb'] for row in found):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _answers(rows: Mapping[str, Any], model: str) -> list[str]:
    """What the models write after the prompts, the most probable token each time."""
    shown = {"dense": rows.get(Run(model, "dense").key)}
    shown |= {f"`{method}`, 0.8": rows.get(Run(model, method, 0.8).key) for method in (WORST, BEST)}
    held = {name: row for name, row in shown.items() if row}
    lines = ["The most probable words after ten prompts:", "", f"| prompt | {' | '.join(held)} |"]
    lines += [f"|{'---|' * (1 + len(held))}"]
    for at, prompt in enumerate(PROMPTS):
        texts = [" ".join(row["answers"][at].replace("|", "\\|").split()) for row in held.values()]
        lines.append(f"| {prompt} | {' | '.join(texts)} |")
    return lines
