"""``--print-ir-after``: print the graph as text after a pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ...ir.errors import RequestError, printable
from ...ir.text import print_graph
from ...passes.base import Pass
from ...passes.manager import StepRecord
from ...passes.state import State
from ...passes.structure import ANALYSES

ALL = "all"
"""The name that stands for every pass."""


def check_printing(names: Sequence[str], pipeline: Sequence[Pass]) -> None:
    """Check that every name is a pass or an analysis of this run."""
    known = [*dict.fromkeys([*(step.name for step in pipeline), *(a.name for a in ANALYSES)]), ALL]
    for name in names:
        if name not in known:
            raise RequestError(f"--print-ir-after {name}: not a pass of this run", f"choose from {', '.join(known)}")


def printer(names: Sequence[str]) -> Callable[[StepRecord, State], None]:
    """A callback that prints the graph on stderr after the passes with these names."""

    def show(step: StepRecord, state: State) -> None:
        if ALL in names or step.name in names:
            text = f"# after {step.text}, {step.seconds:.2f} s\n{print_graph(state.subject.graph)}"
            print(printable(text, lines=True), file=sys.stderr)

    return show
