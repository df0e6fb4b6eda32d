"""What ``fxprune recipe`` prints."""

from __future__ import annotations

import os
from pathlib import Path

from ...backends.artifact import read_record
from ...backends.recipe import recipe_of
from ...ir.call_text import did_you_mean
from ...ir.errors import RequestError
from .read import own_recipes


def recipe_text(what: str) -> str:
    """The YAML of a recipe that comes with fxprune, or of the one that made a directory.

    Args:
        what: the name of one, or a directory that fxprune wrote.

    Raises:
        RequestError: it is neither.
    """
    own = own_recipes()
    if os.path.lexists(what):
        return recipe_of(read_record(Path(what)))
    if what not in own:
        raise RequestError(
            f"there is no directory {what!r}, and fxprune has no recipe of that name",
            f"{did_you_mean(what, own)}its recipes: {', '.join(own)}; or give a directory that fxprune wrote",
        )
    return own[what].read_text(encoding="utf-8")
