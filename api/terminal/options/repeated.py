"""What stderr says where a run repeats a recipe with other texts, libraries or weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ....runtime.ranks import is_first_rank
from ...recipes import settings
from ...recipes.made_with import after_the_run, before_the_run
from ..screen import warn


def with_recipe(arguments: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """As :func:`~fxprune.api.recipes.settings.with_recipe`, and say which texts and libraries are others here."""
    arguments = settings.with_recipe(arguments, words)
    if is_first_rank():
        for text in before_the_run(arguments.environment, arguments):
            warn(text)
    return arguments


def tell_of_weights(arguments: argparse.Namespace) -> None:
    """Say whether the model that was pruned had other weights than that of the recipe."""
    from ....backends.artifact import RECORD, read_record  # imports more than a mistake in a command is worth

    wrote = arguments.out is not None and (Path(arguments.out) / RECORD).is_file()
    if arguments.environment is not None and wrote and not arguments.dry_run and is_first_rank():
        for text in after_the_run(arguments.environment, read_record(Path(arguments.out)).get("source") or {}):
            warn(text)
