"""What servers of models need for the free form, where its own code and configuration are not enough."""

from __future__ import annotations

import json
from importlib.resources import files


def serving_remarks(loaded_by: str, *, heads: bool, parts: bool) -> list[str]:
    """At most one remark for each server that serving.json knows; what it refuses comes before what it needs.

    Args:
        loaded_by: the Auto class that loads the artifact; a server is for the models of one.
        heads: whether layers lost attention heads, which the configuration counts as they were.
        parts: whether parts of layers were taken out.
    """
    facts = json.loads(files(__package__).joinpath("serving.json").read_text(encoding="utf-8"))
    found = [name for name, there in (("parts taken out", parts), ("heads per layer", heads)) if there]
    served = {server: row for server, row in facts.items() if row["loaded_by"] == loaded_by}
    return [f"{server} {row[found[0]]}" for server, row in served.items() if found]
