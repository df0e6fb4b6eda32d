"""How an interrupted command is continued."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ...ir.errors import RequestError

LONG = ("apply", "analyze", "export", "eval", "bench", "demo")
"""Commands that may work for hours."""


def to_go_on(arguments: argparse.Namespace, argv: Sequence[str]) -> str:
    """What to do after an interruption: the command that goes on, or begins again; empty for commands of a moment.

    Args:
        arguments: as they were parsed.
        argv: as they were given, without the name of the program.
    """
    if arguments.command not in LONG:
        return ""
    again = shlex.join(["fxprune", *argv])
    if not _can_resume(arguments):
        return _begin_again(arguments, again)
    from ..stage_places import is_kept

    resumed = again if arguments.resume else f"{again} --resume"
    if is_kept(Path(arguments.out)):
        return f"go on with: {resumed}"
    if arguments.resume:
        return f"no pass was finished; begin again with: {resumed}"
    return f"nothing was kept to go on from; begin again with --resume, which keeps every finished pass: {resumed}"


def _begin_again(arguments: argparse.Namespace, again: str) -> str:
    """What to do where nothing is kept to go on from."""
    forced = again if getattr(arguments, "force", False) else f"{again} --force"
    if arguments.command == "demo" and not arguments.force and Path(arguments.out).exists():
        return f"what {arguments.out} holds is not all; begin again with: {forced}"
    if there := _complete_sizes(arguments):
        return f"complete: {', '.join(map(str, there))}; to make the other sizes, make all again with: {forced}"
    return f"nothing was written to go on from; begin again with: {again}"


def _can_resume(arguments: argparse.Namespace) -> bool:
    """Whether it is a run that ``--resume`` goes on with: of one size of a Hugging Face model, that is written."""
    if arguments.command != "apply" or arguments.dry_run or arguments.out is None:
        return False
    several = "{" in str(arguments.out)
    return not several and ":" not in (arguments.model or "")


def _complete_sizes(arguments: argparse.Namespace) -> list[Path]:
    """The sizes that are there, of a run that writes several, each of which appears complete or not at all. The next
    smaller one is a part of what the run chose for them, and cannot be made without."""
    if arguments.command != "apply" or arguments.dry_run or arguments.out is None:
        return []
    from ...backends.artifact import RECORD
    from ...passes.select.target import holds_sizes, parse_sizes
    from ..places import places_of_sizes

    try:
        places = places_of_sizes(arguments.out, parse_sizes(arguments.target)) if holds_sizes(arguments.target) else []
    except RequestError:
        return []
    return [Path(place) for place in places if place is not None and (Path(place) / RECORD).is_file()]
