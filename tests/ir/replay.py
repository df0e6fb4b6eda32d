"""Replays an operator on real torch: cutting units out of its operands cuts them out of its result, nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch

from fxprune.backends.graph_module import function_of
from fxprune.ir import Indices
from fxprune.ir.axes import Atom, Axis, ProductAxis, Solution, atoms_of
from fxprune.ir.graph import Arg, DType, Op, Value
from fxprune.ir.groups import positions
from fxprune.ir.parser import parse_graph
from fxprune.ir.rules import RULES, Equations
from fxprune.ir.rules.reduce import NORMALISED
from fxprune.runtime.dtypes import DTYPES, SHORT_NAMES

RTOL = 1e-12
"""float64: ten thousand roundings of 1e-16."""

Tensors = dict[Value, torch.Tensor]


@dataclass(frozen=True)
class Example:
    """One call with its operands' data and its solved axes."""

    op: Op
    data: Tensors

    @cached_property
    def solution(self) -> Solution:
        """Of the equations of this operator alone."""
        return self._solved[0]

    @cached_property
    def axes(self) -> Mapping[Value, tuple[Axis, ...]]:
        """Terms of every dimension of every operand and result."""
        return self._solved[1]

    @property
    def least(self) -> Mapping[int, int]:
        """Atom -> units that must be kept."""
        return self._solved[2]

    @cached_property
    def _solved(self) -> tuple[Solution, dict[Value, tuple[Axis, ...]], dict[int, int]]:
        eq = Equations()
        eq.op = self.op
        RULES[self.op.packet].couple(eq, self.op)
        values = [*dict.fromkeys(self.op.operands), *self.op.made]
        solution = eq.axes.solve(axis for value in values for axis in eq.of(value))
        axes = {value: tuple(map(solution.term, eq.of(value))) for value in values}
        terms = ((solution.term(axis), count) for axis, count in eq.least)
        return solution, axes, {term.id: count for term, count in terms if isinstance(term, Atom)}

    @cached_property
    def results(self) -> list[torch.Tensor]:
        """Of the dense call."""
        return run(self.op, self.data)

    @property
    def free(self) -> list[Atom]:
        """Atoms of which units may go."""
        found = dict.fromkeys(atom for axes in self.axes.values() for axis in axes for atom in atoms_of(axis))
        return [atom for atom in found if atom.id not in self.solution.frozen]


def example(operands: str, call: str, draw: Callable[[Value, torch.Generator], torch.Tensor]) -> Example:
    """A call from its text, on data that ``draw`` makes."""
    graph = parse_graph(f"graph @g({operands}) -> %made\n  %made = {call} : f64[]")
    generator = torch.Generator().manual_seed(0)
    data = {value: draw(value, generator) for value in graph.inputs}
    (op,) = graph.ops
    made = run(op, data)
    results = tuple(Value(f"made{i}", DType(SHORT_NAMES[t.dtype]), tuple(t.shape)) for i, t in enumerate(made))
    return Example(Op(op.target, op.args, op.kwargs, results), data)


def run(op: Op, data: Mapping[Value, torch.Tensor]) -> list[torch.Tensor]:
    """The results of one call."""

    def real(arg: Arg) -> Any:
        if isinstance(arg, Value):
            return data[arg]
        if isinstance(arg, tuple):
            return [real(item) for item in arg]
        return DTYPES[arg.name] if isinstance(arg, DType) else arg

    made = function_of(op.target)(*map(real, op.args), **{key: real(arg) for key, arg in op.kwargs.items()})
    return list(made) if isinstance(made, tuple | list) else [made]


class Kept:
    """What stays of every value when units of some atoms go; what a rule's ``resize`` is given."""

    def __init__(self, case: Example, keep: Mapping[int, Sequence[int]]) -> None:
        self.case, self.keep = case, keep

    def kept(self, value: Value, dim: int) -> Indices:
        axis = self.case.axes[value][dim]
        stays = np.ones(axis.size, dtype=bool)
        for atom, units in self.keep.items():
            own = positions(axis, atom)
            stays &= (own < 0) | np.isin(own, units)
        return np.flatnonzero(stays)

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(len(self.kept(value, dim)) for dim in range(len(value.shape)))

    def cut(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        for dim in range(tensor.dim()):
            tensor = tensor.index_select(dim, torch.from_numpy(self.kept(value, dim)))
        return tensor

    def zeroed(self, value: Value, tensor: torch.Tensor, atoms: set[int]) -> torch.Tensor:
        """The tensor with the removed units of some atoms set to zero."""
        tensor = tensor.clone()
        part = Kept(self.case, {atom: units for atom, units in self.keep.items() if atom in atoms})
        for dim in range(tensor.dim()):
            gone = np.setdiff1d(np.arange(tensor.shape[dim]), part.kept(value, dim))
            tensor.index_fill_(dim, torch.from_numpy(gone), 0)
        return tensor


def check_cut(case: Example, keep: Mapping[int, Sequence[int]], *, exact: bool, zeroed: bool = False) -> None:
    """Cutting the operands gives the dense result with those positions taken out.

    A unit that the operator contracts has no place in the result: there it must be enough that *one* operand is zero
    where the unit stood, whichever it is, since only weights are known to be. With ``exact`` False only shapes are
    compared; with ``zeroed`` all operands are zero where removed units stood.
    """
    kept = Kept(case, keep)
    rule = RULES[case.op.packet]
    op = rule.resize(case.op, kept) if rule.resize is not None else case.op
    got = run(op, {value: kept.cut(value, tensor) for value, tensor in case.data.items()})
    assert [tuple(tensor.shape) for tensor in got] == [kept.shape(value) for value in case.op.results]
    if not exact:
        return
    for zero in [{value: set(keep) for value in case.data}] if zeroed else contractions(case, set(keep)):
        data = {value: kept.zeroed(value, t, zero.get(value, set())) for value, t in case.data.items()}
        for value, dense, small in zip(case.op.results, run(case.op, data), got, strict=True):
            torch.testing.assert_close(small, kept.cut(value, dense), rtol=RTOL, atol=RTOL, equal_nan=True)


def contractions(case: Example, atoms: set[int]) -> list[dict[Value, set[int]]]:
    """Ways to zero the atoms that no result has: each of the operands that hold them in turn."""
    alive = {atom.id for value in case.op.results for axis in case.axes[value] for atom in atoms_of(axis)}
    holders = {
        value: {atom.id for axis in case.axes[value] for atom in atoms_of(axis)} & (atoms - alive)
        for value in case.data
    }
    found = []
    for first in (value for value, held in holders.items() if held):
        ways: dict[Value, set[int]] = {first: holders[first]}
        done = set(holders[first])
        for value, held in holders.items():
            ways.setdefault(value, held - done)
            done |= held
        found.append(ways)
    return found or [{}]


def show(case: Example) -> str:
    """The coupling as in the table: ``a b, c b -> a c``."""
    solution = case.solution

    def atom(a: Atom) -> str:
        flags = "!" * (a.id in solution.frozen) + "~" * (NORMALISED in solution.marks.get(a.id, ()))
        return ascii_lowercase[a.id] + flags

    def axis(term: Axis) -> str:
        if isinstance(term, Atom):
            return atom(term)
        sign, children = ("*", term.factors) if isinstance(term, ProductAxis) else ("+", term.parts)
        return f"({f' {sign} '.join(map(axis, children))})" if children else "1"

    def side(values: Sequence[Value]) -> str:
        return ", ".join(" ".join(map(axis, case.axes[value])) or "." for value in values)

    marks = [
        f"{ascii_lowercase[a]} {mark}"
        for a, found in sorted(solution.marks.items())
        for mark in sorted(found - {NORMALISED})
    ]
    text = f"{side(list(dict.fromkeys(case.op.operands)))} -> {side(list(case.op.made))}"
    return re.sub(r"\s+", " ", text + (f" | {', '.join(marks)}" if marks else "")).strip()
