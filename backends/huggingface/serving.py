"""What servers of models need for the free form, where its own code and configuration are not enough."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

FEWER_HEADS, OTHER_WIDTHS = "heads per layer", "widths per layer"
UNLIKE = ("parts taken out", "values per layer", FEWER_HEADS, OTHER_WIDTHS)
"""What the free form may have, in the order in which servers are hindered by it."""


def unlike_config(entry: Mapping[str, Any], *, again: bool) -> tuple[str, ...]:
    """What a model in the free form has that its configuration does not say, as far as its entry there tells it.

    Args:
        entry: of the free form, in config.json; empty for the uniform form.
        again: whether the source was in the free form: of its widths, some may be heads.
    """
    has = (entry.get("absent"), entry.get("values"), again, entry)
    return tuple(kind for kind, there in zip(UNLIKE, has, strict=True) if there)


def serving_remarks(loaded_by: str, kinds: Iterable[str]) -> list[str]:
    """One remark of the free form for each server of such models that serving.json knows; what it refuses comes before
    what it needs.

    Args:
        loaded_by: the Auto class that loads the artifact; a server is for the models of one.
        kinds: what it has, of :data:`UNLIKE`.
    """
    facts = json.loads(files(__package__).joinpath("serving.json").read_text(encoding="utf-8"))
    kind = next(kind for kind in UNLIKE if kind in {*kinds, OTHER_WIDTHS})
    return [f"{server} {row[kind]}" for server, row in facts.items() if row["loaded_by"] == loaded_by]
