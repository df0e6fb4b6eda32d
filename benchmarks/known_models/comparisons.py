"""Comparisons of methods: paired differences with their standard errors; every claim on the page is one of these."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxprune.benchmarks.known_models.columns import NOT_MEASURED, has_tasks, task_difference
from fxprune.benchmarks.known_models.runs import TEXTS

Rows = Sequence[Mapping[str, Any]]

ERRORS = 2
"""A difference is claimed where it is more than so many standard errors."""

BETTER, WORSE, NEITHER = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Compared:
    """Two methods that the page compares.

    Attributes:
        method, other: names of methods.
        target: the largest share of the other's increase of the log-perplexity that was aimed at, on each text.
    """

    method: str
    other: str
    target: float | None = None


COMPARED = (
    Compared("best", "LLM-Pruner's code", 0.4),
    Compared("best", "LLM-Pruner's code, kv corrected", 0.4),
    Compared("best", "FLAP's code", 0.75),
    Compared("best, uniform", "LLM-Pruner's code", 0.6),
    Compared("best, uniform", "LLM-Pruner's code, kv corrected", 0.6),
    Compared("best, uniform", "FLAP's code", 1.0),
    Compared("LLM-Pruner's code, kv corrected", "LLM-Pruner's code"),
    Compared("paper", "LLM-Pruner's code, kv corrected"),
    Compared("flap", "FLAP's code"),
    Compared("best", "best, uniform"),
    Compared("best", "fisher, compensate"),
    Compared("best", "obs"),
    Compared("generate, best", "best"),
    Compared("best_values", "best"),
    Compared("best", "taylor global, compensate"),
    Compared("obs", "obs by=kinds"),
    Compared("obs by=kinds", "obs uniform"),
    Compared("obs", "fisher"),
    Compared("paper, compensate", "paper"),
    Compared("generate, paper, compensate", "paper, compensate"),
    Compared("best, uniform", "paper, compensate"),
)


def difference(rows: Rows, others: Rows, text: str) -> tuple[float, float]:
    """Mean difference of the log-perplexity on a text and its standard error, paired by windows.

    Args:
        rows: of one method, a row for every draw.
        others: of the other, as many; or one, with which all are compared.
        text: its name.

    The error has two parts, added as variances: that of the mean over windows of the differences, each a mean over
    draws; and that of the mean over draws, where there are several.
    """
    pairs = list(zip(rows, [*others] * len(rows) if len(others) == 1 else others, strict=True))
    by_draw = [[a - b for a, b in zip(one["losses"][text], two["losses"][text], strict=True)] for one, two in pairs]
    by_window = [statistics.mean(window) for window in zip(*by_draw, strict=True)]
    variance = statistics.variance(by_window) / len(by_window)
    if len(by_draw) > 1:
        variance += statistics.variance([statistics.mean(draw) for draw in by_draw]) / len(by_draw)
    return statistics.mean(by_window), math.sqrt(variance)


def claim(rows: Rows, others: Rows, text: str) -> str:
    """BETTER or WORSE where the difference is more than ERRORS of its standard errors, otherwise NEITHER."""
    mean, error = difference(rows, others, text)
    if abs(mean) <= ERRORS * error:
        return NEITHER
    return BETTER if mean < 0 else WORSE


def comparison(compared: Compared, rows: Rows, others: Rows, dense: Rows, kept: float) -> str:
    """A line of the table: differences, what they show, and the share of the other's increase.

    Args:
        compared: the two methods.
        rows: of the first method, a row for every draw.
        others: of the second, of the same draws.
        dense: the dense model's row.
        kept: the size.
    """
    apart = [difference(rows, others, text) for text in TEXTS]
    claims = {text: claim(rows, others, text) for text in TEXTS}
    by_claim = {kind: [text for text in TEXTS if claims[text] == kind] for kind in (BETTER, WORSE, NEITHER)}
    shown = [kind if len(of) == len(TEXTS) else f"{kind}: {', '.join(of)}" for kind, of in by_claim.items() if of]
    shares = [difference(rows, dense, text)[0] / difference(others, dense, text)[0] for text in TEXTS]
    target = ""
    if compared.target is not None:
        missed = [text for text, share in zip(TEXTS, shares, strict=True) if share > compared.target]
        target = f"{compared.target:g}: {'missed on ' + ', '.join(missed) if missed else 'met'}"
    cells = [
        f"{kept:g}", compared.method, compared.other, str(len(rows)),
        *(f"{mean:+.3f} ± {error:.3f}" for mean, error in apart),
        _accuracy(rows, others), "; ".join(shown), " / ".join(f"{share:.2f}" for share in shares), target,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _accuracy(rows: Rows, others: Rows) -> str:
    """The difference of the mean accuracy in points, where tasks were measured."""
    both = [(one, two) for one, two in zip(rows, others, strict=True) if has_tasks(one) and has_tasks(two)]
    if not both:
        return NOT_MEASURED
    mean, error = task_difference([one for one, _ in both], [two for _, two in both])
    return f"{100 * mean:+.1f} ± {100 * error:.1f}"


_COLUMNS = (
    *("kept", "method", "compared with", "draws", *TEXTS, "mean accuracy", "shown"),
    *("share of its increase", "target"),
)
HEADER = (f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}")
