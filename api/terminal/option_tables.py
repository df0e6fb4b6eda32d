"""Passes and formats with their options, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from ...ir.errors import printable
from ...ir.options import write_value
from .cells import line, new_table

if TYPE_CHECKING:
    from ...ir.options import Option
    from ..listing import FormatInfo, PassInfo

WORTH_SHARING = 8
"""So many lines of options that passes have alike are listed apart, once."""


def passes(rows: Sequence[PassInfo]) -> list[RenderableType]:
    """The result of ``passes``: every pass with its options; those that several have alike are listed once."""
    takers: dict[Option, list[str]] = {}
    for row in rows:
        for option in row.options:
            takers.setdefault(option, []).append(row.name)
    shared: dict[tuple[str, ...], list[Option]] = {}
    for option, those in takers.items():
        if len(those) > 1:
            shared.setdefault(tuple(those), []).append(option)
    shared = {names: options for names, options in shared.items() if len(names) * len(options) >= WORTH_SHARING}
    once = {option for options in shared.values() for option in options}
    parts: list[RenderableType] = []
    for row in rows:
        parts += _with_options(row, f"{row.kind}  {row.help}", [option for option in row.options if option not in once])
    for names, options in shared.items():
        parts += [line(f"also of {', '.join(names)}:"), _options(options), Text("")]
    return parts


def pass_by_pass(rows: Sequence[PassInfo]) -> list[RenderableType]:
    """The result of ``passes NAME``: each of the passes with all its options."""
    return [part for row in rows for part in _with_options(row, f"{row.kind}  {row.help}", row.options)]


def formats(rows: Sequence[FormatInfo]) -> list[RenderableType]:
    """Every format with its options."""
    return [part for row in rows for part in _with_options(row, row.help, row.options)]


def _with_options(row: PassInfo | FormatInfo, help: str, options: Sequence[Option]) -> list[RenderableType]:
    origin = f"  (from {row.origin})" if row.origin else ""
    head = Text.assemble((printable(row.name), "bold"), printable(f"  {help}{origin}"))
    return [head, *([_options(options)] if options else []), Text("")]


def _options(options: Sequence[Option]) -> RenderableType:
    table = new_table("option", "value", "default", "")
    for option in options:
        table.add_row(option.name, option.wants, write_value(option.default), option.help)
    return table
