"""What servers of models need for the free form, where its own code and configuration are not enough."""

from __future__ import annotations

import json
from importlib.resources import files


def serving_remarks(loaded_by: str, *, heads: bool, parts: bool, values: bool = False) -> list[str]:
    """One remark of the free form for each server of such models that serving.json knows; what it refuses comes before
    what it needs.

    Args:
        loaded_by: the Auto class that loads the artifact; a server is for the models of one.
        heads: whether layers lost attention heads, which the configuration counts as they were.
        parts: whether parts of layers were taken out.
        values: whether values of heads lost channels.
    """
    facts = json.loads(files(__package__).joinpath("serving.json").read_text(encoding="utf-8"))
    kinds = {"parts taken out": parts, "values per layer": values, "heads per layer": heads, "widths per layer": True}
    kind = next(name for name, has in kinds.items() if has)
    return [f"{server} {row[kind]}" for server, row in facts.items() if row["loaded_by"] == loaded_by]
