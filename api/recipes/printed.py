"""The recipe that made a directory, from its ``fxprune.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...backends.artifact import RECORD, read_record
from ...ir.errors import RequestError
from .read import ENVIRONMENT

TEXT_SETTINGS = {"calibration": "calib", "recovery": "data"}
"""What a text was read as -> the setting that names it."""


def recipe_of(folder: Path) -> str:
    """YAML of the recipe that made a directory, with every option of its passes, and the environment of the run.

    Raises:
        RequestError: fxprune did not write the directory.
    """
    if not (folder / RECORD).is_file():
        raise RequestError(f"{folder} holds no {RECORD}", "give a directory that `fxprune apply` wrote")
    record = read_record(folder)
    head = "# Made by `fxprune recipe`. Paths of data and model are those of that machine, their last part alone.\n"
    return head + yaml.safe_dump(_content(record), sort_keys=False, allow_unicode=True, width=1 << 20)


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    recipe: dict[str, Any] = {"model": record["model"], "pass": record["pipeline"]}
    for entry in record.get("texts") or ():
        if (key := TEXT_SETTINGS.get(entry.get("read_as", ""))) is not None:
            recipe.setdefault(key, entry["name"])
    if record.get("form") in ("uniform", "free"):
        recipe["form"] = record["form"]
    recipe[ENVIRONMENT] = {
        "versions": dict(record.get("versions") or {}),
        "source": dict(record.get("source") or {}),
        "parameters": dict(record.get("parameters") or {}),
    }
    return recipe
