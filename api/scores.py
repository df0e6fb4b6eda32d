"""Scores in a file: what a run computed on calibration text, for other budgets of the same model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..ir.errors import RequestError
from ..passes.base import Pass
from ..passes.prune import Prune
from ..passes.saved import Saved

ENTRY = "fxprune.scores"
VERSION = 1


def open_scores(path: str | Path | None, pipeline: Sequence[Pass], *, texts: bool) -> Saved | None:
    """The scores that a file holds, or an empty place for those of this run when there is no such file.

    Args:
        path: of the file; None when scores are neither kept nor used.
        pipeline: what will run.
        texts: whether scores are computed from text, rather than from a loss in code.

    Raises:
        RequestError: for a pipeline that has no scores, a file that holds none, or a folder that is not there.
    """
    if path is None:
        return None
    file = Path(path).expanduser()
    scoring = [step for step in pipeline if isinstance(step, Prune)]
    if not scoring:
        raise RequestError(f"--scores {file}: no pass of this run scores units", "leave it out, or name one: taylor")
    if scoring[0].streams or not scoring[0].needs_weights:
        raise RequestError(
            f"--scores {file}: {scoring[0].name!r} reads no text, and is as quick as reading a file", "leave it out"
        )
    if not texts:
        raise RequestError(
            f"--scores {file}: scores of a loss in code hold for that code, which a file cannot tell", "leave it out"
        )
    if not file.exists():
        if not file.parent.is_dir():
            raise RequestError(f"--scores {file}: there is no directory {file.parent}", "make it, or check the path")
        return Saved(file.name)
    try:
        with safe_open(file, framework="numpy") as held:
            record = json.loads((held.metadata() or {})[ENTRY])
            arrays = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RequestError(
            f"{file} holds no scores that fxprune wrote", "give the file of another run, or no file yet"
        ) from error
    if record.get("version") != VERSION:
        raise RequestError(
            f"{file} holds scores of version {record.get('version')}, and this is {VERSION}", "compute them again"
        )
    return Saved(file.name, arrays, record, loaded=True)


def write_scores(path: str | Path | None, saved: Saved | None) -> None:
    """Write what a run has computed; a file is complete or absent. One that the run adds nothing to stays."""
    if path is None or saved is None or not saved.changed:
        return
    file = Path(path).expanduser()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    record: dict[str, Any] = {"version": VERSION, **saved.record}
    try:
        save_file(saved.arrays, beside, metadata={ENTRY: json.dumps(record, sort_keys=True)})
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
