"""Whether a file that a report shows is of a model whose results it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError
from ..pages.page import ShownRun


def other_model(analysis: Mapping[str, Any], runs: Iterable[ShownRun]) -> str | None:
    """Which model an analysis is of, where none of the results was made from it; None where one was, and without
    results. A model is known by its name and its number of parameters, as far as both files say them.

    Args:
        analysis: the content of its file.
        runs: the results.
    """
    told = [run.record for run in runs]
    if not told or any(_same(analysis, record) for record in told):
        return None
    count = analysis.get("parameters")
    return f"{analysis.get('model')}" + (f", {count:,} parameters" if isinstance(count, int) else "")


def check_scores(path: str | Path, scores: Iterable[str], runs: Iterable[ShownRun]) -> None:
    """Refuse scores of another model.

    Args:
        path: their file.
        scores: names of the groups in it.
        runs: the results.

    Raises:
        RequestError: they name no group that any of the results cut.
    """
    cut = {
        str(group.get("name")) for run in runs for group in run.record.get("groups") or () if isinstance(group, dict)
    }
    named = set(scores)
    if cut and named and not cut & named:
        raise RequestError(
            f"--scores {path} is of another model: it has no group that the results cut, such as {min(cut)}",
            "give the scores of the model that was pruned",
        )


def _same(analysis: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    sizes = record.get("parameters") or {}
    pairs = [
        (analysis.get("parameters"), sizes.get("before") if isinstance(sizes, dict) else None),
        (_last(analysis.get("model")), _last(record.get("model"))),
    ]
    return all(one == other for one, other in pairs if one is not None and other is not None)


def _last(name: object) -> str | None:
    """The last part of a path; a model is called by the whole of it in one file, and by the last part in another."""
    return Path(name).name if isinstance(name, str) and name else None
