"""``--scores``: a file that keeps the scores of a run, so that other budgets of the same model can reuse them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from typing_extensions import TypedDict

from ...backends.atomic_directory import atomic_file
from ...ir.errors import RequestError
from ...passes.analyze.analyze import Analyze
from ...passes.base import Pass
from ...passes.prune import Prune
from ...passes.score_cache import CURVE, ScoreCache
from ...passes.select.target import SEARCH
from ...runtime.json_object import check_schema, parse_json

SCORES_ENTRY = "fxprune.scores"
VERSION = 1


class ReadWindows(TypedDict):
    """Windows of a text that scores were computed on."""

    length: int
    count: int | None
    seed: int | None
    sha256: str


# ``pass`` is a word of Python's own.
ScoresRecord = TypedDict(
    "ScoresRecord", {"pass": str, "options": dict[str, Any], "model": str, "read": list[ReadWindows]}
)
"""What scores were computed with."""


def open_scores(path: str | Path | None, pipeline: Sequence[Pass], *, texts: bool) -> ScoreCache | None:
    """The scores in a file; an empty object to be filled by this run when the file does not exist.

    Args:
        path: the file; None when scores are neither saved nor reused.
        pipeline: the passes that will run.
        texts: whether scores are computed from text, rather than from a loss in code.

    Raises:
        RequestError: no pass computes scores that are worth saving, the file holds no scores, or its directory does
            not exist.
    """
    if path is None:
        return None
    file = Path(path).expanduser()
    scoring = [one for step in pipeline if isinstance(one := step.step if isinstance(step, Analyze) else step, Prune)]
    if not scoring:
        raise RequestError(
            f"--scores {file}: no pass of this run computes scores", "leave --scores out, or add a pass such as taylor"
        )
    if (scoring[0].streams or not scoring[0].needs_weights) and scoring[0].by != SEARCH:
        raise RequestError(
            f"--scores {file}: scores of {scoring[0].name!r} need no text and are quick to compute again",
            "leave --scores out",
        )
    if not texts:
        raise RequestError(
            f"--scores {file}: cannot be used with --loss; a file cannot tell whether the code of the loss has changed",
            "leave --scores out",
        )
    if not file.exists():
        if not file.parent.is_dir():
            raise RequestError(
                f"--scores {file}: directory {file.parent} does not exist", "make the directory, or check the path"
            )
        return ScoreCache(file.name)
    record, arrays = read_scores(file)
    return ScoreCache(file.name, arrays, record, loaded=True)


def read_scores(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the arrays of a scores file.

    Raises:
        RequestError: it holds no scores.
    """
    name, hint = f"--scores {file}", "give a scores file, or a new path to write one"
    try:
        with safe_open(file, framework="numpy") as held:
            text = (held.metadata() or {})[SCORES_ENTRY]
            arrays = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise RequestError(f"{name}: not a scores file of fxprune", hint) from error
    record = parse_json(text, name, hint)
    version = record.get("version") if isinstance(record, dict) else None
    if version != VERSION:
        raise RequestError(
            f"{name}: the file has format version {version}, this fxprune reads {VERSION}",
            "remove the file to compute the scores again",
        )
    check_schema(record, ScoresRecord, name, hint)
    for key, array in arrays.items():
        fits = array.ndim == 2 and len(array) == 2 if key.startswith(CURVE) else array.ndim == 1
        if array.dtype != np.float64 or not fits:
            raise RequestError(f"{name}: {key!r} is {array.dtype} of shape {array.shape}, which are no scores", hint)
    return record, arrays


def write_scores(path: str | Path | None, saved: ScoreCache | None) -> None:
    """Write the scores that a run has computed, if any are new. The file appears complete or not at all."""
    if path is None or saved is None or not saved.changed:
        return
    file = Path(path).expanduser()
    record: dict[str, Any] = {"version": VERSION, **saved.record}
    with atomic_file(file) as beside:
        save_file(saved.arrays, beside, metadata={SCORES_ENTRY: json.dumps(record, sort_keys=True)})
