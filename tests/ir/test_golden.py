"""Golden text: a graph, its groups, and the graph that is left when some units go.

Each file in ``tests/golden`` holds a graph, the units to keep, the groups found and the rewritten graph.
``FXPRUNE_UPDATE_GOLDEN=1 pytest tests/ir/test_golden.py`` writes the last two anew; the difference is reviewed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fxprune
from fxprune.ir import RequestError
from fxprune.ir.parser import parse_graph
from fxprune.ir.text import print_graph
from fxprune.ir.verifier import verify
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.shrink.graph import make_plan, rewrite

FOLDER = Path(fxprune.__file__).parent / "tests" / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def sections(case: str) -> dict[str, str]:
    """The parts of a file by their heading."""
    text = (FOLDER / f"{case}.txt").read_text(encoding="utf-8")
    parts = re.split(r"^--- (\w+)\n", text, flags=re.MULTILINE)
    assert not parts[0]
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def group_lines(coupling: Coupling) -> Iterator[str]:
    for group in coupling.groups.values():
        words = [f"group {group.name} size {group.size} atom a{group.atom}"]
        words += [f"under {group.parent.name}"] if group.parent else []
        words += ["normalised"] if group.normalised else []
        words += [f"frozen: {group.frozen}"] if group.frozen else []
        yield " ".join(words) + "\n"
        for member in group.members:
            yield f"  {member.tensor}.{member.dim} {member.role.value} {member.axis}\n"


def units(text: str) -> dict[str, Any]:
    """Lines ``<group> = <units>``."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {name: np.array(numbers.split(), dtype=np.int64) for name, _, numbers in pairs}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    held = sections(case)
    graph = parse_graph(held["graph"])
    assert print_graph(graph) == held["graph"]
    verify(graph)
    coupling = couple(graph)
    found = {"groups": "".join(group_lines(coupling))}
    after = rewrite(coupling, make_plan(coupling, units(held["keep"])))
    verify(after)
    found["rewritten"] = print_graph(after)
    if os.environ.get("FXPRUNE_UPDATE_GOLDEN"):
        text = "".join(f"--- {name}\n{part}" for name, part in (held | found).items())
        (FOLDER / f"{case}.txt").write_text(text, encoding="utf-8")
    assert sections(case) == held | found
    assert found["rewritten"] != held["graph"]


def test_there_are_cases() -> None:
    assert len(CASES) >= 9


def test_keep_lists_units_of_groups() -> None:
    graph = parse_graph(sections("phi3_mlp")["graph"])
    with pytest.raises(RequestError, match="a group 'x' that this model does not have"):
        make_plan(couple(graph), units("x = 0 1"))
