"""The table of a model with a draft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from ..benchmarking.timings import ONE_ROUND
from .cells import amount, line, new_table

if TYPE_CHECKING:
    from ..benchmarking.drafting import Drafted
    from ..benchmarking.timings import RoundSpread


def drafted(found: Drafted) -> list[RenderableType]:
    """The result of ``bench --draft``: speeds, and how much of what the draft wrote was accepted."""
    head = (
        f"{found.prompts} prompts of {found.prompt} tokens of {found.text}, then {found.new} greedy tokens each, equal "
        f"to those of {found.dense} alone; {amount(found.threads, 'thread')}; median (lowest to highest)"
    )
    table = new_table("model", "parameters", "tokens/s", "speed-up", right=("parameters", "tokens/s", "speed-up"))
    table.add_row(found.dense, f"{found.parameters[0]:,}", _spread(found.alone, 1), "")
    table.add_row(
        f"with the draft {found.draft}",
        f"{found.parameters[1]:,}",
        _spread(found.assisted, 1),
        _spread(found.speedup, 2),
    )
    steps = (
        f"{found.accepted:.2f} of up to {found.tokens} drafted tokens accepted per step; {found.steps} steps for "
        f"{found.prompts * found.new} tokens; {found.drafted} tokens drafted"
    )
    notes = [steps, f"larger batches: {found.larger_batches}"]
    if found.rounds == 1:
        notes.append(ONE_ROUND)
    elif round(found.speedup.high, 2) < 1:
        notes.append("slower than without the draft: a smaller draft, or one with more accepted tokens, is needed")
    notes += found.unchecked
    return [line(head), table, *map(line, notes)]


def _spread(found: RoundSpread, digits: int) -> str:
    return f"{found.median:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
