"""Lines and tables in which names stand that came from files: shown as they are, never obeyed.

A table fits the terminal: cells wrap between words, paths are shortened to their end, and where that is not enough,
every row becomes a list. No number and no path is cut in two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ...ir.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GAP = 1
"""Blanks between two columns."""

CUT = "\N{HORIZONTAL ELLIPSIS}/"
"""In place of the beginning of a path."""


def line(text: str) -> Text:
    """A line of text; an end of line in it is escaped."""
    return Text(printable(text))


@dataclass(frozen=True)
class Copied:
    """Text that is to be copied from the terminal: no line of it is wrapped, however long it is."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for one in self.text.split("\n"):
            yield Text(printable(one), no_wrap=True, overflow="ignore")


class _Table(Table):
    """Its cells are lines."""

    def __init__(self, titles: Sequence[str], right: Sequence[str]) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        self._titles, self._right, self._cells = titles, frozenset(right), list[list[Text]]()

    def add_row(self, *cells: Any, **options: Any) -> None:
        del options
        self._cells.append([line(cell) if isinstance(cell, str) else cell for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for cells in (self._cells, [[_shortened(cell) for cell in row] for row in self._cells]):
            widths = self._widths(cells, options.max_width)
            if widths is not None:
                yield self._laid_out(cells, widths)
                return
        yield from self._listed()

    def _widths(self, cells: Sequence[Sequence[Text]], room: int) -> list[int] | None:
        """The width of every column, so that no word is cut; None where they do not fit."""
        columns = list(zip(*cells, strict=True)) or [()] * len(self._titles)
        least, most = [], []
        for title, column in zip(self._titles, columns, strict=True):
            whole = title in self._right
            least.append(max(map(_longest_word, [title, *(() if whole else map(str, column))]), default=0))
            if whole:  # a number stays with its unit, and with its range where there is room for it
                least[-1] = max([least[-1], *(len(part) for cell in column for part in str(cell).split(" ("))])
            most.append(max([len(title), *(cell.cell_len for cell in column)]))
        spare = room - sum(least) - GAP * (len(least) - 1)
        if spare < 0:
            return None
        wanted = [high - low for low, high in zip(least, most, strict=True)]
        for at in sorted(range(len(wanted)), key=lambda at: wanted[at]):  # the narrow ones first: numbers on one line
            more = min(wanted[at], spare)
            least[at], spare = least[at] + more, spare - more
        return least

    def _laid_out(self, cells: Sequence[Sequence[Text]], widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for title, width in zip(self._titles, widths, strict=True):
            table.add_column(title, justify="right" if title in self._right else "left", width=width, overflow="fold")
        for row in cells:
            table.add_row(*row)
        return table

    def _listed(self) -> Iterator[Text | Table]:
        """Every row as a list: its first cell, and below it the others with their titles."""
        wide = max(map(len, self._titles))
        for first, *rest in self._cells:
            yield Text(str(first), "bold", overflow="fold")
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(width=wide + 2, no_wrap=True)
            grid.add_column(overflow="fold")
            for title, cell in zip(self._titles[1:], rest, strict=True):
                grid.add_row(Text(f"  {title}", "bold"), cell)
            yield grid


def _longest_word(text: str) -> int:
    return max((Text(word).cell_len for word in text.split()), default=0)


def _shortened(cell: Text) -> Text:
    """The end of a path, in place of all of it."""
    text = str(cell)
    parts = text.rstrip("/").split("/")
    return Text(CUT + parts[-1]) if len(parts) > 2 and " " not in text else cell


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table.

    Args:
        columns: their titles.
        right: titles of the columns that are aligned to the right.
    """
    return _Table(columns, right)


def amount(count: int, unit: str) -> str:
    """A number with what it counts: ``1 thread``, ``2 threads``."""
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
