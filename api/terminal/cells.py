"""Lines and tables in which names stand that came from files: shown as they are, never obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ...ir.errors import printable


def line(text: str) -> Text:
    """A line of text; an end of line in it is escaped."""
    return Text(printable(text))


class _Table(Table):
    """Its cells are lines."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(line(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table.

    Args:
        columns: their titles.
        right: titles of the columns that are aligned to the right.
    """
    table = _Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
