"""What servers of models need for the free form, where its own code and configuration are not enough."""

from __future__ import annotations

import json
from importlib.resources import files


def serving_remarks(loaded_by: str, *, heads: bool, parts: bool) -> list[str]:
    """One remark of the free form for each server of such models that serving.json knows; what it refuses comes before
    what it needs.

    Args:
        loaded_by: the Auto class that loads the artifact; a server is for the models of one.
        heads: whether layers lost attention heads, which the configuration counts as they were.
        parts: whether parts of layers were taken out.
    """
    facts = json.loads(files(__package__).joinpath("serving.json").read_text(encoding="utf-8"))
    kind = "parts taken out" if parts else "heads per layer" if heads else "widths per layer"
    return [f"{server} {row[kind]}" for server, row in facts.items() if row["loaded_by"] == loaded_by]
