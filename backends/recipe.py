"""The recipe that made a directory, from its ``fxprune.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..demo import name_of_text

ASKED_FOR = "asked for"
"""Why a result has the free form where the user wanted that."""

ENVIRONMENT = "environment"
"""The key of a recipe that tells where it ran. It has no effect."""

_HEAD = "# Made by `fxprune recipe`. Paths of data and model are those of that machine, their last part alone.\n"

_DATA_SETTINGS = {"calibration": "calib", "recovery": "data"}
"""What a text was read as -> the setting that names it."""


def recipe_of(record: Mapping[str, Any]) -> str:
    """YAML of the recipe that made a directory, with every option of its passes, and the environment of the run.

    Args:
        record: the content of its ``fxprune.json``.
    """
    recipe: dict[str, Any] = {"model": record["model"]} if record.get("model") else {}  # a module in memory has no name
    if record.get("pipeline"):  # a run that repeats a plan may have none
        recipe["pass"] = record["pipeline"]
    for entry in record.get("texts") or ():
        key = _DATA_SETTINGS.get(entry.get("read_as", ""))
        # The demo's model takes its own text where none is given.
        if key is not None and entry["name"] != name_of_text(entry["read_as"]) and key not in recipe:
            recipe[key] = _names(entry)
            for option, said in _reading(key, entry.get("read_from") or {}):
                recipe.setdefault(option, []).append(said)
    # What found by itself that no plain configuration describes it finds that again, and says so in the same words.
    if record.get("form") == "uniform" or (record.get("form"), record.get("why_free")) == ("free", ASKED_FOR):
        recipe["form"] = record["form"]
    told = {name: dict(record.get(name) or {}) for name in ("versions", "source", "parameters")}
    return _HEAD + yaml.safe_dump({**recipe, ENVIRONMENT: told}, sort_keys=False, allow_unicode=True, width=1 << 20)


def _names(entry: Mapping[str, Any]) -> str | list[str]:
    """The name of a text, or those of several that were read as one."""
    files = (entry.get("read_from") or {}).get("files")
    return [str(file["name"]) for file in files] if files else str(entry["name"])


def _reading(key: str, read_from: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How the rows of a text were read: options, and what they say of this text alone."""
    parts = [read_from, *read_from.get("files", ())]
    for option in ("field", "split"):
        yield from {(option, f"{key}={part[option]}") for part in parts if part.get(option)}
