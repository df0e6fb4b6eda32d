"""The JSON file of measured rows, a line for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_rows(file: Path) -> dict[str, Any]:
    """Key of the run -> row; none where the file is not there yet."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def write_rows(file: Path, rows: Mapping[str, Any]) -> None:
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    file.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def is_whole(row: Mapping[str, Any] | None, tasks: Path | None) -> bool:
    """Whether a row has been measured, with tasks and answers where these are asked for."""
    return row is not None and (tasks is None or {"tasks", "written"} <= row.keys())
