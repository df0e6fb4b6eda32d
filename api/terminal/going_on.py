"""How an interrupted command is continued."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path


def to_go_on(arguments: argparse.Namespace, argv: Sequence[str]) -> str:
    """How an interrupted run is continued; empty for what cannot be.

    Args:
        arguments: as they were parsed.
        argv: as they were given, without the name of the program.
    """
    from ..pruning.stage_places import is_kept

    model = arguments.model if arguments.command == "apply" else None
    if arguments.command != "apply" or arguments.dry_run or arguments.out is None or ":" in (model or ""):
        return ""
    if not is_kept(Path(arguments.out)):
        return "nothing was saved to go on from; with --resume every finished pass is"
    return "go on with: " + shlex.join(["fxprune", *argv, *([] if arguments.resume else ["--resume"])])
