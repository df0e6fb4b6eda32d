"""Tables fit the terminal, and cut no number and no path in two."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fxprune.api.listing import list_passes
from fxprune.api.terminal import option_tables
from fxprune.api.terminal.cells import new_table

FIGURES = ("parameters", "size", "MACs per window", "perplexity", "prefill tok/s", "decode tok/s")
ROW = ("/home/somebody/models/llama-3-8b-pruned", "8,030,261,248", "16.06 GB", "163.58 M", "31.92", "16,255", "454")
SPREAD = "1,234.5 (1,200.0 to 1,300.0)"


def printed(*parts: Any, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return [text.rstrip() for text in capture.get().splitlines()]


def of(*rows: tuple[str, ...]) -> Any:
    table = new_table("model", *FIGURES, right=FIGURES)
    for row in rows:
        table.add_row(*row)
    return table


def test_what_fits_is_a_table_as_it_is() -> None:
    wide = printed(of(ROW), width=200)
    assert len(wide) == 2
    assert [word in wide[1] for word in ROW] == [True] * len(ROW)


def test_paths_are_shortened_to_their_end_and_numbers_stay_whole() -> None:
    found = printed(of(ROW, ("demo", *ROW[1:])))
    assert max(map(len, found)) <= 80
    assert found[-2].split() == ["…/llama-3-8b-pruned", *" ".join(ROW[1:]).split()]


def test_what_does_not_fit_shortened_is_a_list() -> None:
    right = (*FIGURES, "batch 1", "batch 8")
    table = new_table("model", *right, right=right)
    table.add_row(*ROW, SPREAD, SPREAD)
    found = printed(table)
    assert found[0] == ROW[0]
    assert found[-1].split(maxsplit=2) == ["batch", "8", SPREAD]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_word_of_the_passes_is_cut(width: int) -> None:
    found = printed(*option_tables.passes(list_passes()), width=width)
    assert max(map(len, found)) <= width
    words = {word for text in found for word in text.split()}
    assert {"element1", "experts", "multiple_of", "params:0.8,", "perplexity", "checkpointing"} <= words


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with console.capture() as capture:
        console.print(*option_tables.passes(list_passes()[:1]))
    assert "\x1b[3" not in capture.get(), "colours; bold is none"
